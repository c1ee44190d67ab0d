//! Whole commands against a served API and a store in memory.

use std::sync::Arc;

use super::{ui::script::Script, *};
use crate::{
    agent::handle::fixtures::{HEALTHY, leader, live, replica},
    api::test_server::{Server, Store, n2_at, server},
    model::PgState,
};

struct World {
    server: Server,
    context: Context,
}

/// A cluster whose members are all served by one fake agent.
async fn world() -> World {
    let mut server = server(HEALTHY).await;
    drop(server.agent());
    let n1 = format!(
        r#"{{"api_url":"http://{}/patroni","state":"running","role":"primary","timeline":4}}"#,
        server.address
    );
    server.store.put("members/n1", &n1);
    server.store.put("members/n2", &n2_at(&server.address));
    let context = Context {
        scope: "demo".into(),
        dcs: Some(server.store.clone()),
        client: server.client.clone(),
        local: server.client.clone(),
        local_api: format!("http://{}", server.address),
        login: None,
        loaded: None,
        silent: Silence::default(),
    };
    World { server, context }
}

impl World {
    async fn run(&self, command: Command, answers: &[&str]) -> (Result<Exit, String>, String) {
        let mut ui = Script::typing(answers);
        let exit = run_with(command, &self.context, &mut ui).await;
        (exit.map_err(|error| error.to_string()), ui.text())
    }
}

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn typed(line: &str) -> Command {
    let words = ["howdah"].into_iter().chain(line.split(' '));
    <Line as clap::Parser>::try_parse_from(words)
        .expect("a valid command line")
        .command
}

#[tokio::test]
async fn list_needs_nothing_but_the_command() {
    let world = world().await;
    let (exit, shown) = world.run(typed("list"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(
        shown.starts_with("+ Cluster: demo (7400000000000000001) -"),
        "{shown}"
    );
    assert!(shown.contains("| n2     |"), "{shown}");
    let (exit, _) = world.run(typed("list demo -f json"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    let (exit, _) = world.run(typed("topology other"), &[]).await;
    assert_eq!(
        exit,
        Err("cluster other is not the one configured here, which is demo".into())
    );
}

#[tokio::test]
async fn slots_are_asked_of_every_member() {
    let world = world().await;
    let (exit, shown) = world.run(typed("slots -f tsv"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    let heading = "Member\tSlot\tType\tOwner\tActive\tWAL status\tRestart LSN\tRetained bytes";
    assert!(shown.starts_with(heading), "{shown}");
    world.server.store.put(
        "members/n2",
        r#"{"api_url":"http://127.0.0.1:1/patroni","state":"running","role":"replica"}"#,
    );
    let (exit, shown) = world.run(typed("slots demo"), &[]).await;
    assert_eq!(exit, Ok(Exit::Failed), "a member that does not answer is missing");
    assert!(shown.contains("n2: failed to get slots"), "{shown}");
}

#[tokio::test]
async fn without_a_store_the_member_on_this_host_is_asked() {
    let mut world = world().await;
    world.context.dcs = None;
    let (exit, shown) = world.run(typed("list -f tsv"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(shown.contains("demo\tn1\t\tLeader\trunning\t4"), "{shown}");
    world.context.dcs = Some(Store::new(&[]));
    world.context.silent = Silence::default();
    let (exit, shown) = world.run(typed("list"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(shown.starts_with("! the DCS cannot be asked ("), "{shown}");
    assert!(
        shown.contains("+ Cluster: demo (7400000000000000001) "),
        "{shown}"
    );
    world.context.local_api = "http://127.0.0.1:1".into();
    assert!(
        world
            .run(typed("list"), &[])
            .await
            .0
            .expect_err("nobody there")
            .contains("127.0.0.1:1")
    );
}

fn promote_n2(store: Arc<Store>) -> tokio::task::JoinHandle<()> {
    use crate::dcs::Dcs;
    tokio::spawn(async move {
        let mut changes = store.changes();
        while store.get("failover").is_none() {
            changes.changed().await.expect("the store lives");
        }
        store.put("leader", "n2");
        store.put("failover", "{}");
    })
}

#[tokio::test]
async fn a_switchover_shows_the_table_before_and_after() {
    let world = world().await;
    let cluster = promote_n2(world.server.store.clone());
    let (exit, shown) = world
        .run(typed("switchover --candidate n2"), &["n1", "", "y"])
        .await;
    assert_eq!(exit, Ok(Exit::Ok));
    cluster.await.expect("no panic");
    assert!(
        shown.starts_with("Current cluster topology\n+ Cluster: demo"),
        "{shown}"
    );
    assert!(
        shown.contains(" Successfully switched over to \"n2\"\n+ Cluster: demo"),
        "{shown}"
    );
    assert_eq!(shown.matches("| Leader ").count(), 2, "{shown}");
    let (exit, _) = world.run(typed("switchover --leader n1 --force"), &[]).await;
    assert_eq!(exit, Err("Member n1 is not the leader of cluster demo".into()));
}

#[tokio::test]
async fn a_refused_switchover_is_a_failure() {
    let world = world().await;
    world.server.store.put("members/n2", &n2_at("127.0.0.1:1"));
    let (exit, shown) = world.run(typed("switchover --force"), &[]).await;
    assert_eq!(exit, Ok(Exit::Failed));
    let expected =
        "Switchover failed, details: 412, switchover is not possible: no good candidates have been found";
    assert!(shown.ends_with(expected), "{shown}");
}

#[tokio::test]
async fn a_failover_without_a_leader_goes_to_the_candidate_or_the_store() {
    let world = world().await;
    world.server.store.put("leader", "");
    world.server.store.put("members/n2", &n2_at("127.0.0.1:1"));
    let (exit, shown) = world.run(typed("failover --candidate n2 --force"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(
        shown.contains("! Could not failover using Patroni api, falling back to DCS"),
        "{shown}"
    );
    assert_eq!(
        world.server.store.get("failover").as_deref(),
        Some(r#"{"member":"n2"}"#)
    );
}

#[tokio::test]
async fn members_are_restarted_one_after_the_other() {
    let world = world().await;
    let (exit, shown) = world.run(typed("restart demo"), &["now", "y", ""]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(
        shown.contains("Are you sure you want to restart members n1, n2? [y/N]: y"),
        "{shown}"
    );
    assert!(
        shown.ends_with("Success: restart on member n1\nSuccess: restart on member n2"),
        "{shown}"
    );
    let (exit, shown) = world
        .run(typed("restart n2 --force --scheduled 2999-01-01T00:00Z"), &[])
        .await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(
        shown.ends_with("Success: restart scheduled on member n2"),
        "{shown}"
    );
    for (line, answers, error) in [
        ("restart n9 --force", &[][..], "n9 is not a member of cluster"),
        (
            "restart demo n1 -r replica --force",
            &[],
            "No replica among provided members",
        ),
        ("restart n2 --scheduled now", &["n"], "Aborted restart"),
        (
            "restart n2 --force --pg-version 17",
            &[],
            "Invalid PostgreSQL version '17': it should look like X.Y (X.Y.Z before version 10)",
        ),
    ] {
        assert_eq!(
            world.run(typed(line), answers).await.0,
            Err(error.to_owned()),
            "{line}"
        );
    }
    let (exit, shown) = world.run(typed("restart n2 --timeout 0 --force"), &[]).await;
    assert_eq!(exit, Ok(Exit::Failed));
    let expected =
        "Failed: restart for member n2, status code=400, (Timeout should be a positive number of seconds)";
    assert!(shown.ends_with(expected), "{shown}");
}

#[tokio::test]
async fn an_interrupted_question_aborts() {
    let world = world().await;
    let (exit, shown) = world.run(typed("restart n2"), &[]).await;
    assert_eq!(exit, Ok(Exit::Failed));
    assert!(shown.ends_with("! Aborted!"), "{shown}");
}

#[tokio::test]
async fn only_replicas_are_reinitialized() {
    let world = world().await;
    let (exit, _) = world.run(typed("reinit n1 --force"), &[]).await;
    assert_eq!(exit, Err("No replica among provided members".into()));
    let (exit, _) = world.run(typed("reinit --force"), &[]).await;
    assert_eq!(exit, Err("no member given to reinitialize".into()));
    let (exit, shown) = world.run(typed("reinit"), &["n2", "y"]).await;
    assert_eq!(exit, Ok(Exit::Failed));
    assert!(
        shown.contains("Which member do you want to reinitialize [n2]?: n2"),
        "{shown}"
    );
    let expected =
        "Failed: reinitialize for member n2, status code=503, (I am the leader, can not reinitialize)";
    assert!(shown.ends_with(expected), "{shown}");
}

#[tokio::test]
async fn history_and_version() {
    let world = world().await;
    let (_, shown) = world.run(typed("history"), &[]).await;
    assert_eq!(
        shown,
        "+----+----------+------------------------------+----------------------------------+------------+
| TL |      LSN | Reason                       | Timestamp                        | New Leader |
+----+----------+------------------------------+----------------------------------+------------+
|  1 | 25165976 | no recovery target specified | 2026-01-05T08:10:00.100000+00:00 | n2         |
+----+----------+------------------------------+----------------------------------+------------+"
    );
    let (_, shown) = world.run(typed("version"), &[]).await;
    assert_eq!(shown, format!("howdah version {VERSION}"));
    let (_, shown) = world.run(typed("version demo n2"), &[]).await;
    assert!(
        shown.ends_with("\n\nn2: Patroni 4.1.4 PostgreSQL 17.4"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_member_that_is_still_being_made_is_well_but_not_ready() {
    let mut world = world().await;
    let all = ["health", "health --ready"];
    for line in all {
        assert_eq!(world.run(typed(line), &[]).await.0, Ok(Exit::Ok), "{line}");
        assert!(!typed(line).needs_store(), "{line}");
    }
    let mut cloning = live(replica());
    cloning.local.state = PgState::CreatingReplica;
    cloning.local.answer = None;
    cloning.dcs = None;
    world.server.snapshot.send_replace(Arc::new(cloning.clone()));
    let (exit, shown) = world.run(typed("health"), &[]).await;
    assert_eq!((exit, shown.as_str()), (Ok(Exit::Ok), "alive"));
    let (exit, shown) = world.run(typed("health --ready"), &[]).await;
    assert_eq!(exit, Ok(Exit::Failed));
    assert!(
        shown.starts_with("not ready: http://") && shown.ends_with(" 503"),
        "{shown}"
    );
    // A loop that has not turned for two ttl.
    cloning.next_run = cloning.next_run.minus(Duration::from_secs(100));
    world.server.snapshot.send_replace(Arc::new(cloning));
    assert_eq!(world.run(typed("health"), &[]).await.0, Ok(Exit::Failed));
    world.context.local_api = "http://127.0.0.1:1".into();
    for line in all {
        assert_eq!(world.run(typed(line), &[]).await.0, Ok(Exit::Failed), "{line}");
    }
}

#[tokio::test]
async fn a_silent_store_is_waited_for_once_and_the_last_view_is_shown() {
    let world = world().await;
    world.server.store.fall_silent();
    let mut old = live(leader());
    if let Some(view) = &mut old.dcs {
        view.seen_at = view.seen_at.minus(Duration::from_secs(45));
    }
    world.server.snapshot.send_replace(Arc::new(old));
    let begun = Instant::now();
    let (exit, shown) = world.run(typed("list"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(
        shown.starts_with("! the DCS cannot be asked (no answer within 3s); asking http://"),
        "{shown}"
    );
    assert!(
        shown.contains("this is the cluster as it was seen there 4"),
        "{shown}"
    );
    assert!(shown.contains("| n2     |"), "{shown}");
    let (exit, shown) = world.run(typed("topology"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    assert!(shown.starts_with("! http://"), "not asked again: {shown}");
    assert!(begun.elapsed() < Duration::from_secs(9));
}

#[tokio::test]
async fn a_table_shown_again_and_again_ends_with_its_reader() {
    let world = world().await;
    let mut ui = Script::typing(&[]);
    ui.reads = Some(2);
    let shown = run_with(typed("list -w 0.1"), &world.context, &mut ui);
    let exit = tokio::time::timeout(Duration::from_secs(5), shown).await;
    assert_eq!(exit.expect("it ends").expect("no error"), Exit::Ok);
    assert_eq!(ui.shown.len(), 2);
}

#[tokio::test]
async fn pause_and_resume_change_the_configuration_once() {
    let world = world().await;
    let (_, shown) = world.run(typed("pause"), &[]).await;
    assert_eq!(shown, "Success: cluster management is paused");
    assert_eq!(
        world.run(typed("pause"), &[]).await.0,
        Err("Cluster is already paused".into())
    );
    let (_, shown) = world.run(typed("show-config"), &[]).await;
    assert_eq!(shown, "pause: true\nttl: 30");
    let (_, shown) = world.run(typed("resume"), &[]).await;
    assert_eq!(shown, "Success: cluster management is resumed");
    assert_eq!(
        world.run(typed("resume"), &[]).await.0,
        Err("Cluster is not paused".into())
    );
}

#[tokio::test]
async fn reload_tells_how_long_it_may_take() {
    let world = world().await;
    let (exit, shown) = world.run(typed("reload n1 --force"), &[]).await;
    assert_eq!(exit, Ok(Exit::Ok));
    let expected = "Reload request received for member n1 and will be processed within 10 seconds";
    assert!(shown.ends_with(expected), "{shown}");
}
