//! A way to a server that can be cut: what is on it is dropped, and what comes then waits in vain.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// Listens until dropped.
pub struct Proxy {
    pub port: u16,
    open: watch::Sender<bool>,
    used: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// To a server on loopback.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (open, is_open) = watch::channel(true);
        let used = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(listen(listener, target, is_open, Arc::clone(&used)));
        Self {
            port,
            open,
            used,
            task,
        }
    }

    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn cut(&self) {
        assert!(self.used.load(Ordering::Relaxed), "nobody has come this way");
        self.open.send_replace(false);
    }

    pub fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, target: u16, open: watch::Receiver<bool>, used: Arc<AtomicBool>) {
    while let Ok((client, _)) = listener.accept().await {
        used.store(true, Ordering::Relaxed);
        tokio::spawn(carry(client, target, open.clone()));
    }
}

async fn carry(mut client: TcpStream, target: u16, mut open: watch::Receiver<bool>) {
    if open.wait_for(|open| *open).await.is_err() {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    let mut cut = open.clone();
    let ended = tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => true,
        _ = cut.wait_for(|open| !*open) => false,
    };
    if !ended {
        // The client hears nothing more, not even an end, until the way is mended.
        let _mended = open.wait_for(|open| *open).await;
    }
}
