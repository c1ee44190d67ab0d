//! What the page at `/ui` needs of the server, over real sockets.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Limits, bind,
    test_server::{limits, n2_at, server_with},
};
use crate::{
    agent::handle::fixtures::{HEALTHY, cluster, leader, live},
    client::Credentials,
};

#[tokio::test]
async fn those_who_look_at_once_are_one_question_to_each_member() {
    let n2 = bind("127.0.0.1:0").await.expect("a free port");
    let address = n2.local_addr().expect("bound").to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = n2.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let body = r#"{"howdah":{"candidacy":"could lead","because":"x"}}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _head = stream.read(&mut [0; 1000]).await;
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    let room = Limits {
        connections_max: 32,
        ..limits()
    };
    let server = server_with(HEALTHY, None, room).await;
    let mut snapshot = live(leader());
    if let Some(view) = &mut snapshot.dcs {
        view.cluster = Arc::new(cluster(
            &[HEALTHY, &[("members/n2", n2_at(&address).as_str())]].concat(),
        ));
    }
    server.snapshot.send_replace(Arc::new(snapshot));
    let looks = futures::future::join_all((0..20).map(|_| server.raw(b"GET /why HTTP/1.0\r\n\r\n"))).await;
    let (_, body) = looks[0].split_once("\r\n\r\n").expect("an answer");
    let words: Value = serde_json::from_str(body).expect("JSON");
    // n1 answers for itself: nobody listens at the address it is said to have.
    assert_eq!(words[0]["member"], "n1");
    assert_ne!(words[0]["candidacy"], "unknown");
    assert_eq!(words[0]["followers"], json!(["n2"]));
    assert_eq!(
        (&words[1]["member"], &words[1]["candidacy"]),
        (&json!("n2"), &json!("could lead"))
    );
    assert!(looks.iter().all(|look| look.ends_with(body)));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_before_it_is_asked_for_a_password() {
    let credentials = Credentials {
        username: "u".into(),
        password: "p".into(),
    };
    let server = server_with(HEALTHY, Some(credentials), limits()).await;
    for method in ["POST /reload", "PATCH /config", "DELETE /switchover"] {
        let request = format!(
            "{method} HTTP/1.1\r\nHost: pg1:8008\r\nOrigin: http://evil.example\r\nAuthorization: Basic dTpw\r\n\
             Connection: close\r\n\r\n"
        );
        let answer = server.raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(!answer.contains("www-authenticate"), "{answer}");
    }
    let page = server.raw(b"GET /ui HTTP/1.0\r\n\r\n").await;
    assert!(page.contains("\r\nx-frame-options: DENY\r\n"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none';"));
}
