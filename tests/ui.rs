//! The page at `/ui` in a real browser on a real cluster: what it shows, what it does when somebody clicks and confirms,
//! and that it says so when what it shows is old.
#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests: a panic is a failure, and waits poll a condition with a deadline"
)]

#[path = "ui/browser.rs"]
mod browser;
#[path = "common/etcd.rs"]
#[allow(
    dead_code,
    reason = "shared with the DCS contract ring, which uses more of it"
)]
mod etcd;
#[path = "common/node.rs"]
#[allow(dead_code, reason = "shared with the cluster ring, which uses more of it")]
mod node;
#[path = "ui/stage.rs"]
mod stage;

use node::wait_for;
use serde_json::{Value, json};
use stage::{PASSWORD, SOON, Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_sees_the_cluster_and_changes_its_leader() {
    let stage = Stage::set().await;
    let browser = &stage.browser;
    stage.open(1).await;
    let drawn = "return [document.querySelectorAll('#topology .card').length,
        [...document.querySelectorAll('#topology .edge.flows')].map(e => e.dataset.from + '>' + e.dataset.to).sort()]";
    stage
        .is("who reads from whom", drawn, json!([3, ["pg1>pg2", "pg1>pg3"]]))
        .await;
    stage
        .says(
            "why pg3 could lead",
            "#members tr[data-member=pg3] .why",
            "could lead",
        )
        .await;
    stage
        .says(
            "why pg1 leads",
            "#members tr[data-member=pg1] .why",
            "it holds the lock",
        )
        .await;
    stage.says("what is promised", "#promise", "asynchronous").await;
    stage.says("no history", "#history", "has not changed").await;
    stage.says("the configuration", "#config", "loop_wait: 1").await;
    let config = browser
        .run("return document.getElementById('config').textContent")
        .await
        .unwrap();
    let config = config.as_str().unwrap();
    assert!(
        config.contains("--token=•••") && config.contains("u:•••@h/wal"),
        "{config}"
    );
    assert!(!config.contains("hush"), "{config}");
    assert!(
        config.contains("<img src=x onerror=alert(1)>"),
        "text stays text: {config}"
    );
    assert_eq!(
        browser
            .run("return document.querySelectorAll('img').length")
            .await,
        Ok(json!(0))
    );
    let others = "return [...document.querySelectorAll('#members a')].map(a => a.href)";
    let wanted = json!([
        format!("{}/ui", stage.origin(0)),
        format!("{}/ui", stage.origin(2))
    ]);
    stage.is("links to the pages of the others", others, wanted).await;

    // Nothing came from elsewhere, and nothing was complained of.
    let ours = format!("{}/", stage.origin(1));
    let asked = browser.requests().await;
    assert!(asked.contains(&format!("{ours}cluster")), "{asked:?}");
    let foreign: Vec<_> = asked
        .iter()
        .filter(|url| !url.starts_with(&ours) && !url.starts_with("data:"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert_eq!(browser.complaints().await, Vec::<String>::new());

    // A switchover: the word, the password, and it happens.
    stage
        .confirm("button[data-act=switchover][data-member=pg3]", Some("pg3"))
        .await;
    stage.sign_in("wrong").await;
    stage
        .says("that the password is wrong", "#ask-said", "not accepted")
        .await;
    stage.sign_in(PASSWORD).await;
    stage.nodes[2].wait_primary(SOON).await;
    stage.members("pg3").await;
    stage
        .says(
            "what became of it",
            "#note",
            "Successfully switched over to \"pg3\"",
        )
        .await;
    stage.asks(false).await;
    let bars = "return document.querySelectorAll('#history svg .span').length";
    stage.is("the change on the time axis", bars, json!(1)).await;
    stage
        .is(
            "the lines from the new leader",
            drawn,
            json!([3, ["pg3>pg1", "pg3>pg2"]]),
        )
        .await;

    // A restart of the member whose page it is; the password is remembered by the page.
    let started = async || {
        let (_, status) = stage.nodes[1].get("/patroni").await?;
        Ok::<_, String>(status["postmaster_start_time"].clone())
    };
    let before = started().await.unwrap();
    stage.confirm("button[data-act=restart]", Some("pg2")).await;
    stage
        .says("what became of it", "#note", "restarted successfully")
        .await;
    assert_ne!(started().await.unwrap(), before);
    stage.members("pg3").await;

    // Its data, copied anew.
    let copied = async || {
        let (_, status) = stage.nodes[1].get("/patroni").await?;
        Ok::<_, String>(status["copies"]["made"].as_u64().unwrap_or(0))
    };
    let before = copied().await.unwrap();
    stage.confirm("button[data-act=reinitialize]", Some("pg2")).await;
    stage
        .says("what became of it", "#note", "reinitialize started")
        .await;
    wait_for("the copy", SOON, async || match copied().await? {
        made if made > before => Ok(()),
        made => Err(made.to_string()),
    })
    .await;
    stage.members("pg3").await;

    // Pause and resume.
    stage.confirm("#pause[data-act=pause]", None).await;
    stage.hidden("paused", false).await;
    stage.asks(false).await;
    stage.confirm("#pause[data-act=resume]", None).await;
    stage.hidden("paused", true).await;

    // Forgotten is forgotten.
    stage.browser.click("#forget").await;
    stage.confirm("#pause[data-act=pause]", None).await;
    stage.hidden("ask-login", false).await;
    stage.browser.click("#ask-no").await;
    stage.asks(false).await;

    // What the browser itself says of the refusals above is all there is.
    let complaints = browser.complaints().await;
    let unexpected: Vec<_> = complaints.iter().filter(|text| !text.contains(" 401 ")).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_old_is_called_old_and_nobody_acts_on_it() {
    let stage = Stage::set().await;
    stage.open(1).await;
    stage.hidden("stale", true).await;
    let usable = "return [...document.querySelectorAll('#members button')].map(b => !b.disabled)";
    let all = |wanted: bool| {
        move |found: &Value| {
            found
                .as_array()
                .is_some_and(|all| all.len() > 3 && all.iter().all(|one| *one == wanted))
        }
    };
    stage
        .shows("buttons that can be pressed", usable, all(true))
        .await;

    stage.signal_all(1, nix::sys::signal::Signal::SIGSTOP);
    stage
        .says(
            "that pg2 is silent",
            "#stale:not([hidden])",
            "pg2 does not answer.",
        )
        .await;
    stage.says("how old it is", "#stale:not([hidden])", "s old").await;
    stage
        .shows("buttons that cannot be pressed", usable, all(false))
        .await;
    stage.signal_all(1, nix::sys::signal::Signal::SIGCONT);
    stage.hidden("stale", true).await;
    stage.members("pg1").await;

    // The member answers, the store does not: an older view, and the page says so.
    stage.etcd.freeze();
    stage
        .says(
            "that the store is away",
            "#stale:not([hidden])",
            "pg2 does not reach the DCS.",
        )
        .await;
    stage
        .shows("buttons that can be pressed", usable, all(true))
        .await;
    stage.etcd.thaw();
    stage.hidden("stale", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_fits_dark_light_and_small_screens_and_other_pages_change_nothing() {
    let stage = Stage::set().await;
    let browser = &stage.browser;
    browser.prefers("light").await;
    stage.open(1).await;
    stage.confirm("button[data-act='hand over']", Some("pg1")).await;
    stage.sign_in(PASSWORD).await;
    stage
        .says("what became of it", "#note", "Successfully switched over")
        .await;
    stage.hidden("stale", true).await;
    stage.says("who could lead", "#members", "could lead").await;
    let leader = "return document.querySelector('#members tr[data-role=leader]')?.dataset.member";
    let leader = stage
        .shows("another leader", leader, |name| {
            *name != "pg1" && name.is_string()
        })
        .await;
    stage.members(leader.as_str().unwrap()).await;
    stage
        .is(
            "the change",
            "return document.querySelectorAll('#history svg .span').length",
            json!(1),
        )
        .await;
    let light = stage.background().await;
    stage.keep("light.png").await;
    browser.prefers("dark").await;
    let dark = stage.background().await;
    assert_ne!(light, dark, "as the system prefers it");
    stage.keep("dark.png").await;
    browser.click("#theme").await;
    assert_eq!(stage.background().await, light, "as the person prefers it");
    browser.open(&format!("{}/ui", stage.origin(1))).await;
    assert_eq!(stage.background().await, light, "and it is remembered");
    browser.click("#theme").await;

    browser.resize(390, 844).await;
    stage.members(leader.as_str().unwrap()).await;
    let over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    stage.is("nothing beyond the edge", over, json!(0)).await;
    stage.keep("phone.png").await;

    // Another site in the same browser: that it may not read the answer is not enough.
    let target = stage.origin(1);
    browser.open(&format!("{}/liveness", stage.origin(0))).await;
    let attack = format!(
        "return fetch('{target}/reload', {{method: 'POST', mode: 'no-cors', credentials: 'include'}}).then(a => a.type)"
    );
    assert_eq!(browser.run(&attack).await, Ok(json!("opaque")), "it was sent");
    assert!(stage.nodes[1].log().contains("another site's page sent it"));
    let frame = format!(
        "const f = document.createElement('iframe'); f.src = '{target}/ui'; document.documentElement.append(f);
         return new Promise(done => f.onload = () => done(f.contentDocument === null))"
    );
    assert_eq!(browser.run(&frame).await, Ok(json!(true)));
    let refused = browser.complaints().await;
    assert!(
        refused.iter().any(|text| text.contains("frame-ancestors")),
        "{refused:?}"
    );
}
