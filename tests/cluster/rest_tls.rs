//! TLS of the REST API: what members, programs and people see of it, and certificates that change while it serves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use howdah::{
    client::{Answer, Client},
    tls::{
        client::{Check, Tls},
        files::Identity,
    },
};
use http::Method;
use serde_json::json;

use crate::{
    Cluster, SOON,
    certificates::certificates,
    node::{Node, always, own, wait_for},
};

const WITHIN: Duration = Duration::from_secs(5);

/// A folder with an authority and what it has signed, readable for members.
fn authority(base: &Path, name: &str) -> PathBuf {
    let dir = base.join(name);
    fs::create_dir(&dir).expect("a folder");
    certificates(&dir);
    share(&dir);
    dir
}

fn share(dir: &Path) {
    own(dir);
    for file in fs::read_dir(dir).expect("a folder") {
        own(&file.expect("a file").path());
    }
}

fn file(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}

/// Somebody who asks.
fn somebody(authority: &Path, certificate: Option<&str>) -> Client {
    let client = Client::new(None);
    client.set_tls(Tls {
        cacert: Some(authority.join("ca.crt")),
        identity: certificate.map(|name| Identity {
            cert: authority.join(format!("{name}.crt")),
            key: authority.join(format!("{name}.key")),
            password: None,
        }),
        check: Check::Whole,
    });
    client
}

async fn ask(client: &Client, node: &Node, path: &str) -> Result<Answer, String> {
    let url = format!("https://127.0.0.1:{}{path}", node.api_port);
    let answer = client.get(&url, WITHIN).await;
    answer.map_err(|error| error.to_string())
}

async fn change(client: &Client, node: &Node, method: Method, path: &str) -> (u16, String) {
    let url = format!("https://127.0.0.1:{}{path}", node.api_port);
    let body = json!({"loop_wait": 1});
    let answer = client
        .send(method, &url, Some(&body), WITHIN)
        .await
        .expect("an answer");
    (answer.status, answer.text())
}

async fn leader(client: &Client, cluster: &Cluster, but: Option<usize>) -> usize {
    wait_for("a leader", SOON, async || {
        for (index, node) in cluster.nodes.iter().enumerate() {
            let answer = ask(client, node, "/primary").await;
            if Some(index) != but && answer.is_ok_and(|answer| answer.status == 200) {
                return Ok(index);
            }
        }
        Err("nobody leads".to_owned())
    })
    .await
}

async fn everybody_streams(client: &Client, cluster: &Cluster) {
    wait_for("all members to be well", SOON, async || {
        for node in &cluster.nodes {
            let answer = ask(client, node, "/readiness").await?;
            if answer.status != 200 {
                return Err(format!("{}: {}", node.name, answer.text()));
            }
        }
        Ok(())
    })
    .await;
}

async fn timeline(node: &Node) -> String {
    let asked = node.sql("SELECT timeline_id FROM pg_control_checkpoint()").await;
    asked.expect("a timeline")
}

async fn certificate_ends(client: &Client, node: &Node) -> Result<f64, String> {
    let page = ask(client, node, "/metrics").await?.text();
    let name = "howdah_certificate_expiry_timestamp_seconds{";
    let line = page.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.ok_or_else(|| format!("no {name}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_need_a_certificate_and_members_go_on_without_the_store() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2", "pg3"]);
    let ours = authority(cluster.base.path(), "ours");
    for node in &mut cluster.nodes {
        node.set("HOWDAH_RESTAPI_CERTFILE", &file(&ours, "server.pem"))
            .set("HOWDAH_RESTAPI_CAFILE", &file(&ours, "ca.crt"))
            .set("HOWDAH_RESTAPI_VERIFY_CLIENT", "optional")
            .set(
                "HOWDAH_RESTAPI_HTTPS_EXTRA_HEADERS",
                "{Strict-Transport-Security: max-age=1}",
            )
            .set("HOWDAH_CTL_CERTFILE", &file(&ours, "client.crt"))
            .set("HOWDAH_CTL_KEYFILE", &file(&ours, "client.key"))
            .start();
    }
    let (anybody, known) = (somebody(&ours, None), somebody(&ours, Some("client")));
    let first = leader(&anybody, &cluster, None).await;
    everybody_streams(&anybody, &cluster).await;
    let view = ask(&anybody, &cluster.nodes[0], "/cluster")
        .await
        .expect("a view")
        .json();
    let members = view.expect("JSON")["members"].clone();
    for member in members.as_array().expect("a list") {
        let url = member["api_url"].as_str().expect("a URL");
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    }

    let denied = change(&anybody, &cluster.nodes[first], Method::PATCH, "/config").await;
    assert_eq!(denied, (403, "client certificate required".to_owned()));
    let changed = change(&known, &cluster.nodes[first], Method::PATCH, "/config").await;
    assert_eq!(changed.0, 200, "{}", changed.1);
    let plain = cluster.nodes[first].get("/primary").await;
    assert!(plain.is_err(), "answered without TLS: {plain:?}");

    let (code, out, err) = cluster.nodes[0].cli(&["switchover", "--force"]).await;
    assert_eq!(code, 0, "{out}{err}");
    let second = leader(&anybody, &cluster, Some(first)).await;
    everybody_streams(&anybody, &cluster).await;

    wait_for("the members to be ready for an outage", SOON, async || {
        let page = ask(&anybody, &cluster.nodes[second], "/metrics").await?.text();
        match page
            .lines()
            .any(|line| line.starts_with("howdah_failsafe_ready{") && line.ends_with(" 1"))
        {
            true => Ok(()),
            false => Err("they are not".to_owned()),
        }
    })
    .await;
    // Three ttl: without the consent of the others, who are asked over TLS, it would have stopped.
    let before = timeline(&cluster.nodes[second]).await;
    cluster.etcd.kill();
    always(
        "it leads without the store",
        Duration::from_secs(15),
        async || {
            let answer = ask(&anybody, &cluster.nodes[second], "/primary").await?;
            match answer.status {
                200 => Ok(()),
                status => Err(format!("{status}: {}", answer.text())),
            }
        },
    )
    .await;
    cluster.etcd.start_again();
    everybody_streams(&anybody, &cluster).await;
    assert_eq!(timeline(&cluster.nodes[second]).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_certificate_there_is_no_connection_and_a_failover_all_the_same() {
    let mut cluster = Cluster::prepare(&["pg1", "pg2"]);
    let ours = authority(cluster.base.path(), "ours");
    let encrypt = "pkcs8 -topk8 -v2 aes-256-cbc -in server.key -out secret.key -passout pass:opensesame";
    let made = Command::new("openssl")
        .args(encrypt.split(' '))
        .current_dir(&ours)
        .status();
    assert!(made.expect("openssl").success());
    share(&ours);
    for node in &mut cluster.nodes {
        node.set("HOWDAH_RESTAPI_CERTFILE", &file(&ours, "server.crt"))
            .set("HOWDAH_RESTAPI_KEYFILE", &file(&ours, "secret.key"))
            .set("HOWDAH_RESTAPI_KEYFILE_PASSWORD", "opensesame")
            .set("HOWDAH_RESTAPI_CAFILE", &file(&ours, "ca.crt"))
            .set("HOWDAH_RESTAPI_CIPHERS", "ECDHE-RSA-AES256-GCM-SHA384:!aNULL")
            .set("HOWDAH_RESTAPI_VERIFY_CLIENT", "required")
            .start();
    }
    let (anybody, known) = (somebody(&ours, None), somebody(&ours, Some("client")));
    let first = leader(&known, &cluster, None).await;
    everybody_streams(&known, &cluster).await;
    let refused = ask(&anybody, &cluster.nodes[first], "/primary").await;
    assert!(refused.is_err(), "answered without a certificate: {refused:?}");
    let (code, out, err) = cluster.nodes[first].cli(&["health"]).await;
    assert_eq!(code, 0, "{out}{err}");
    // The other one has to hear from nobody else that it is the most advanced; it asks over TLS who answers at all.
    cluster.nodes[first].kill_node();
    leader(&known, &cluster, Some(first)).await;
    for node in &cluster.nodes {
        assert!(!node.log().contains("opensesame"), "the password is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_while_it_serves_and_a_bad_one_is_not_taken() {
    let mut cluster = Cluster::prepare(&["pg1"]);
    let (ours, others) = (
        authority(cluster.base.path(), "ours"),
        authority(cluster.base.path(), "others"),
    );
    let shown = ours.join("shown.pem");
    let show = |from: &Path| {
        fs::copy(from, &shown).expect("copy");
        own(&shown);
    };
    show(&ours.join("server.pem"));
    let node = &mut cluster.nodes[0];
    node.set("HOWDAH_RESTAPI_CERTFILE", &file(&ours, "shown.pem"))
        .start();
    let node = &cluster.nodes[0];
    let (old, new) = (somebody(&ours, None), somebody(&others, None));
    leader(&old, &cluster, None).await;
    let error = ask(&new, node, "/primary")
        .await
        .expect_err("of another authority");
    assert!(error.contains("certificate"), "{error}");
    let ends = certificate_ends(&old, node).await.expect("an end");
    assert!(ends > 1.7e9, "{ends}");

    // Whoever is connected stays connected. A reload looks at once.
    show(&others.join("server.pem"));
    assert_eq!(change(&old, node, Method::POST, "/reload").await.0, 202);
    wait_for("the new certificate", SOON, async || {
        ask(&new, node, "/primary").await
    })
    .await;
    let strangers = ask(&somebody(&ours, None), node, "/primary").await;
    assert!(
        strangers.is_err(),
        "the old certificate is still shown: {strangers:?}"
    );
    assert_eq!(
        ask(&old, node, "/primary").await.map(|answer| answer.status),
        Ok(200)
    );

    fs::write(&shown, "no certificate").expect("write");
    assert_eq!(change(&new, node, Method::POST, "/reload").await.0, 202);
    wait_for("the log to say so", SOON, async || {
        match node.log().contains("the new certificate cannot be used") {
            true => Ok(()),
            false => Err("nothing was said".to_owned()),
        }
    })
    .await;
    let fresh = somebody(&others, None);
    assert_eq!(
        ask(&fresh, node, "/primary").await.map(|answer| answer.status),
        Ok(200)
    );
}
