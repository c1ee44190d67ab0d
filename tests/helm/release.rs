//! The life of one release, from `helm install` to what `helm uninstall` leaves.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::{
    cluster::{Cluster, image, inside},
    helm::{Done, chart},
    node::wait_for,
    witness::Witness,
};

const NAME: &str = "pg-howdah";
/// Short enough for a test, long enough to tell an orderly hand-over from waiting for the end of a lock.
const TTL: Duration = Duration::from_secs(10);
/// No commits for a client that finds the new leader through kube-proxy.
const HANDED_OVER: Duration = Duration::from_secs(5);
/// On top of ttl where a leader is killed: for the election, and for kube-proxy.
const ELECTION: Duration = Duration::from_secs(5);
/// Images are there; a pod starts in seconds on an idle machine.
const SOON: Duration = Duration::from_secs(90);
/// Of the members' pods.
const MEMBERS: &str = "pods --selector=cluster-name=pg-howdah";

struct Release {
    cluster: Cluster,
    password: String,
    address: String,
    witnesses: i64,
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap()
}

fn revision(pod: &Value) -> &str {
    pod["metadata"]["labels"]["controller-revision-hash"]
        .as_str()
        .unwrap()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    pod["metadata"]["deletionTimestamp"].is_null() && conditions.into_iter().flatten().any(ready)
}

/// What was seen of a step that interrupts writes.
struct Seen {
    witness: Witness,
    since: Instant,
    leader: String,
}

impl Release {
    fn install() -> Self {
        let mut release = Self {
            cluster: Cluster::start(),
            password: String::new(),
            address: String::new(),
            witnesses: 0,
        };
        release.helm("install", &[]).expect("helm install");
        let secret = release.cluster.get(&format!("secret {NAME}-credentials"));
        let password = secret["data"]["superuser-password"].as_str().unwrap();
        release.password = String::from_utf8(STANDARD.decode(password).unwrap()).unwrap();
        release.look_up_primary();
        release
    }

    fn look_up_primary(&mut self) {
        let service = self.cluster.get(&format!("service {NAME}"));
        self.address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    }

    /// `helm install` or `helm upgrade`, with what every release here has.
    fn helm(&self, command: &str, more: &[&str]) -> Done {
        let image = image();
        let (repository, tag) = image.rsplit_once(':').unwrap();
        let values = [
            format!("image.repository={repository}"),
            format!("image.tag={tag}"),
            "image.pullPolicy=Never".to_owned(),
            "persistence.size=100Mi".to_owned(),
            format!("bootstrap.ttl={}", TTL.as_secs()),
            "bootstrap.loop_wait=2".to_owned(),
            "bootstrap.retry_timeout=4".to_owned(),
        ];
        let chart = chart();
        let mut args = vec![command, "pg", chart.to_str().unwrap()];
        for value in &values {
            args.extend(["--set", value]);
        }
        args.extend(more);
        self.cluster.helm(&args)
    }

    fn pods(&self) -> Vec<Value> {
        let mut list = self.cluster.get(MEMBERS);
        let Value::Array(pods) = list["items"].take() else {
            panic!("{list}");
        };
        pods
    }

    /// The member whose pod has the label, if that is one.
    fn leader(&self) -> Option<String> {
        let pods = self.pods();
        let mut leaders = pods
            .iter()
            .filter(|pod| pod["metadata"]["labels"]["role"] == "primary");
        let leader = leaders.next().map(|pod| name(pod).to_owned());
        leader.filter(|_| leaders.next().is_none())
    }

    /// Until this many members are ready and one leads; its name.
    async fn healthy(&self, count: usize) -> String {
        wait_for(&format!("{count} members that are well"), SOON, async || {
            let pods = self.pods();
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let says = || self.cluster.ask("get pods --output wide");
            match self.leader() {
                Some(leader) if ready == count && pods.len() == count => Ok(leader),
                leader => Err(format!(
                    "{ready} of {} ready, leader {leader:?}\n{}",
                    pods.len(),
                    says()
                )),
            }
        })
        .await
    }

    /// What a member's own command line answers.
    fn howdah(&self, words: &[&str]) -> String {
        let pod = format!("{NAME}-0");
        let command = ["exec", &pod, "--", "howdah"];
        self.cluster.kubectl(&[&command, words].concat()).expect("howdah")
    }

    fn query(&self, sql: &str) -> String {
        self.howdah(&["query", "--command", sql])
    }

    /// The timeline of the leader: raised by one with each change of it.
    fn timeline(&self) -> i64 {
        let members: Value = serde_json::from_str(&self.howdah(&["list", "--format", "json"])).unwrap();
        let members = members.as_array().unwrap();
        let leader = members.iter().find(|member| member["Role"] == "Leader").unwrap();
        leader["TL"].as_i64().unwrap()
    }

    fn login(&self) -> tokio_postgres::Config {
        let mut server = tokio_postgres::Config::new();
        server
            .host(&self.address)
            .port(5432)
            .user("postgres")
            .password(&self.password)
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(1));
        server
    }

    /// A client that writes through the primary's Service, from when it does.
    async fn watch(&mut self, leader: String) -> Seen {
        self.witnesses += 1;
        let witness = Witness::on(self.login(), self.witnesses * 1_000_000);
        wait_for("a commit through the primary's Service", SOON, async || {
            witness.last().ok_or_else(|| "none".to_owned())
        })
        .await;
        Seen {
            witness,
            since: Instant::now(),
            leader,
        }
    }

    /// Writes go on; the longest time without any, and every commit is there.
    async fn survived(&self, seen: Seen, what: &str, limit: Duration, may_lose: bool) {
        let now = Instant::now();
        wait_for("commits to go on", SOON, async || match seen.witness.last() {
            Some(ack) if ack.at > now => Ok(()),
            last => Err(format!("{last:?}")),
        })
        .await;
        let gap = seen.witness.longest_gap(seen.since, Instant::now());
        println!(
            "{what}: no commits for {gap:?} (the leader was {}), all over after {:?}",
            seen.leader,
            seen.since.elapsed()
        );
        assert!(gap < limit, "{what}: no commits for {gap:?}");
        let acks = seen.witness.acks();
        drop(seen);
        if may_lose {
            return;
        }
        let (client, connection) = self.login().connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let rows = client.query("SELECT id FROM witness", &[]).await.unwrap();
        let there: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        let lost: Vec<i64> = acks
            .iter()
            .map(|ack| ack.id)
            .filter(|id| !there.contains(id))
            .collect();
        assert_eq!(lost, Vec::<i64>::new(), "{what}: acknowledged, and lost");
    }

    async fn another_leads_than(&self, old: &str) -> String {
        wait_for(&format!("another leader than {old}"), SOON, async || {
            let leader = self.leader();
            leader
                .filter(|leader| leader != old)
                .ok_or_else(|| "none".to_owned())
        })
        .await
    }
}

/// Deleting a pod is an order: the leader hands over before it stops.
async fn its_leader_is_deleted(release: &mut Release) {
    let leader = release.healthy(3).await;
    let seen = release.watch(leader.clone()).await;
    release.cluster.ask(&format!("delete pod {leader} --wait=false"));
    release.another_leads_than(&leader).await;
    release.healthy(3).await;
    release
        .survived(seen, "kubectl delete of the leader", HANDED_OVER, false)
        .await;
}

/// Everything in its container ends at once; nobody hands anything over.
async fn its_leader_is_killed(release: &mut Release) {
    let leader = release.healthy(3).await;
    let seen = release.watch(leader.clone()).await;
    let pods = release.pods();
    let pod = pods.iter().find(|pod| name(pod) == leader).unwrap();
    release.cluster.kill_container(pod);
    wait_for("the container to be started again", SOON, async || {
        let pods = release.pods();
        let pod = pods.iter().find(|pod| name(pod) == leader).unwrap();
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_i64();
        if restarts >= Some(1) {
            Ok(())
        } else {
            Err(pod["status"].to_string())
        }
    })
    .await;
    release.healthy(3).await;
    release
        .survived(seen, "kill -9 of the leader", TTL + ELECTION, true)
        .await;
}

/// One member at a time leaves the node of the leader, and comes up on the other one.
async fn its_leaders_node_is_drained(release: &mut Release) {
    let leader = release.healthy(3).await;
    let pods = release.pods();
    let pod = pods.iter().find(|pod| name(pod) == leader).unwrap();
    let node = pod["spec"]["nodeName"].as_str().unwrap();
    let seen = release.watch(leader.clone()).await;
    // The pod of `helm test` has no controller.
    let drain = format!("drain {node} --force --delete-emptydir-data --ignore-daemonsets --timeout=90s");
    release.cluster.ask(&drain);
    release.healthy(3).await;
    let moved = release.pods();
    assert!(
        moved.iter().all(|pod| pod["spec"]["nodeName"] != node),
        "all on the other node"
    );
    release.cluster.ask(&format!("uncordon {node}"));
    release
        .survived(seen, "kubectl drain of its node", HANDED_OVER, false)
        .await;
}

async fn it_is_scaled_to_five_and_back(release: &mut Release) {
    let leader = release.healthy(3).await;
    let seen = release.watch(leader).await;
    release
        .helm("upgrade", &["--set", "replicaCount=5"])
        .expect("five");
    release.healthy(5).await;
    let timeline = release.timeline();
    release.helm("upgrade", &[]).expect("three");
    release.healthy(3).await;
    assert_eq!(release.timeline(), timeline, "nobody led that had to go");
    let claims = release.cluster.get("pvc");
    assert_eq!(claims["items"].as_array().unwrap().len(), 5, "their volumes stay");
    let listed = release.howdah(&["list", "--format", "tsv"]);
    assert_eq!(
        listed.lines().count(),
        1 + 3,
        "the cluster has forgotten them: {listed}"
    );
    release
        .survived(seen, "scaled to five and back", HANDED_OVER, false)
        .await;
}

/// The highest number leads, which a StatefulSet by itself would replace first.
async fn an_upgrade_costs_one_switchover(release: &mut Release) {
    const LAST: &str = "pg-howdah-2";
    if release.healthy(3).await != LAST {
        release.howdah(&["switchover", "--candidate", LAST, "--force"]);
    }
    assert_eq!(release.healthy(3).await, LAST);
    let (timeline, before) = (release.timeline(), release.pods());
    let seen = release.watch(LAST.to_owned()).await;
    release
        .helm("upgrade", &["--set", "postgresql.parameters.work_mem=5MB"])
        .expect("helm upgrade");
    // Helm has waited for the Job, and the Job for the members.
    let pods = release.pods();
    assert!(pods.iter().all(is_ready), "the upgrade is over");
    assert_eq!(release.timeline(), timeline + 1, "one switchover");
    for (old, new) in before.iter().zip(&pods) {
        assert_ne!(revision(old), revision(new), "{} is up to date", name(new));
    }
    let born = |pod: &Value| pod["metadata"]["creationTimestamp"].as_str().unwrap().to_owned();
    let leaders = born(pods.iter().find(|pod| name(pod) == LAST).unwrap());
    assert!(
        pods.iter().all(|pod| born(pod) <= leaders),
        "the old leader was the last"
    );
    let asked = release.query("SHOW work_mem");
    assert!(asked.contains("5MB"), "{asked}");
    let jobs = release.cluster.ask("get jobs,roles --output name");
    assert!(
        !jobs.contains("rollout"),
        "nothing of the rollout is left: {jobs}"
    );
    release
        .survived(seen, "helm upgrade, replicas first", HANDED_OVER, false)
        .await;
}

/// A change with which no member starts: one replica is lost to it, no more, and brought back. (By a rollback: the next
/// upgrade would leave what a failed one has added, because Helm compares with the last that succeeded.)
async fn a_broken_upgrade_stops_at_its_first_member_and_is_taken_back(release: &mut Release) {
    let leader = release.healthy(3).await;
    let (timeline, before) = (release.timeline(), release.pods());
    let seen = release.watch(leader.clone()).await;
    let broken = [
        "--timeout=20s",
        "--set",
        "rollout.timeoutSeconds=10",
        "--set",
        "extraEnv[0].name=HOWDAH_RESTAPI_LISTEN",
        "--set",
        "extraEnv[0].value=nowhere",
    ];
    let done = release.helm("upgrade", &broken);
    assert!(!done.ok, "nothing is wrong: {}", done.out);
    let pods = release.pods();
    let replaced: Vec<&str> = before
        .iter()
        .zip(&pods)
        .filter(|(old, new)| revision(old) != revision(new))
        .map(|(_, new)| name(new))
        .collect();
    assert!(
        replaced.len() == 1 && *replaced[0] != *leader,
        "replaced: {replaced:?}, leader: {leader}"
    );
    release.cluster.helm(&["rollback", "pg"]).expect("helm rollback");
    release.healthy(3).await;
    assert_eq!(release.timeline(), timeline, "nobody handed over");
    release
        .survived(seen, "a broken upgrade and its end", HANDED_OVER, false)
        .await;
}

async fn its_data_outlives_it(release: &mut Release) {
    release.healthy(3).await;
    let count = release.query("SELECT count(*) FROM witness");
    release
        .cluster
        .helm(&["uninstall", "pg", "--wait"])
        .expect("helm uninstall");
    wait_for("the pods to be gone", SOON, async || match release.pods().len() {
        0 => Ok(()),
        count => Err(format!("{count} are there")),
    })
    .await;
    let claims = release.cluster.get("pvc");
    let bound = |claim: &&Value| claim["status"]["phase"] == "Bound";
    assert_eq!(
        claims["items"].as_array().unwrap().iter().filter(bound).count(),
        5
    );
    let begun = Instant::now();
    release.helm("install", &[]).expect("helm install, again");
    release.look_up_primary();
    release.healthy(3).await;
    println!("installed again: well after {:?}", begun.elapsed());
    assert_eq!(release.query("SELECT count(*) FROM witness"), count);
    release.cluster.helm(&["test", "pg"]).expect("helm test, again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_release_is_installed_broken_scaled_upgraded_and_removed() {
    if !inside("release::a_release_is_installed_broken_scaled_upgraded_and_removed") {
        return;
    }
    let begun = Instant::now();
    let mut release = Release::install();
    println!("a cluster, and a release in it: {:?}", begun.elapsed());
    release.healthy(3).await;
    println!("three members are well: {:?}", begun.elapsed());
    let said = release
        .cluster
        .helm(&["test", "pg", "--logs"])
        .expect("helm test");
    assert!(said.contains("a replica has it"), "{said}");
    its_leader_is_deleted(&mut release).await;
    its_leader_is_killed(&mut release).await;
    its_leaders_node_is_drained(&mut release).await;
    it_is_scaled_to_five_and_back(&mut release).await;
    an_upgrade_costs_one_switchover(&mut release).await;
    a_broken_upgrade_stops_at_its_first_member_and_is_taken_back(&mut release).await;
    its_data_outlives_it(&mut release).await;
    println!("everything: {:?}", begun.elapsed());
}
