//! A way to a server on which answers are spoilt: cut short, replaced by noise or with noise inside, somebody else's words,
//! or an answer given before. What is asked arrives as it was sent.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::JoinHandle,
};

/// What a middlebox, another server on the same port, or a server that is not yet itself may say.
const FOREIGN: [&str; 6] = [
    "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 23\r\n\r\n<html>502 :-(</html>\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 20\r\n\r\n<html>log in</html>\n",
    "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 22\r\n\r\n<html>not here</html>\n",
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    "-ERR unknown command\r\n",
];

/// Listens until dropped.
pub(crate) struct Garbler {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    target: u16,
    on: AtomicBool,
    spoilt: AtomicUsize,
    seed: AtomicU64,
}

impl Garbler {
    /// To a server on loopback; honest until told otherwise.
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target,
            on: AtomicBool::new(false),
            spoilt: AtomicUsize::new(0),
            seed: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
        });
        let task = tokio::spawn(listen(listener, Arc::clone(&shared)));
        Self { port, shared, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// About every second answer is spoilt from now on.
    pub(crate) fn spoil(&self) {
        self.shared.on.store(true, Ordering::SeqCst);
    }

    /// Every answer arrives as it was given, but what was spoilt before is not made good.
    pub(crate) fn spare(&self) {
        self.shared.on.store(false, Ordering::SeqCst);
    }

    /// How many were spoilt so far.
    pub(crate) fn spoilt(&self) -> usize {
        self.shared.spoilt.load(Ordering::SeqCst)
    }
}

impl Drop for Garbler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, Arc::clone(&shared)));
    }
}

async fn carry(client: TcpStream, shared: Arc<Shared>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)).await else {
        return;
    };
    let (mut asks, answers) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    // Whoever ends first ends both.
    tokio::select! {
        _ = copy(&mut asks, &mut to_server) => {}
        () = answer(from_server, answers, &shared) => {}
    }
}

async fn answer(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, shared: &Shared) {
    let mut before = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = server.read(&mut buffer).await else {
            return;
        };
        let true_answer = &buffer[..length];
        let seed = shared.seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut dice = Dice(seed);
        let spoils = shared.on.load(Ordering::SeqCst) && dice.below(2) == 0;
        let (text, ends) = if spoils {
            shared.spoilt.fetch_add(1, Ordering::SeqCst);
            garble(true_answer, &before, &mut dice)
        } else {
            (true_answer.to_vec(), false)
        };
        if client.write_all(&text).await.is_err() || ends {
            return;
        }
        before = true_answer.to_vec();
    }
}

/// What arrives instead, and whether the connection ends then.
fn garble(answer: &[u8], before: &[u8], dice: &mut Dice) -> (Vec<u8>, bool) {
    let somewhere = dice.below(answer.len());
    match dice.below(6) {
        0 => (dice.noise(answer.len()), false),
        1 => {
            // So long that it cannot be taken for a name.
            let noise = dice.noise(32);
            (
                [&answer[..somewhere], &noise, &answer[somewhere..]].concat(),
                false,
            )
        }
        2 => (answer[..somewhere].to_vec(), true),
        3 => (before.to_vec(), false),
        4 => ([answer, answer].concat(), false),
        _ => (FOREIGN[dice.below(FOREIGN.len())].into(), dice.below(2) == 0),
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap_or(0) % limit
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}
