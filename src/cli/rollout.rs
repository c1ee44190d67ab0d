//! `rollout`: the pods of a StatefulSet that are not up to date are replaced, replicas first and the leader last, so that
//! an upgrade costs one switchover. For a StatefulSet with the update strategy `OnDelete`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{CliError, Context, RolloutArgs, ui::Ui};
use crate::{
    api::cluster::ClusterView,
    dcs::kubernetes::{Pod, StatefulSet, Workloads},
    exit::Exit,
};

const LOOK_EVERY: Duration = Duration::from_millis(500);
const ASK_WITHIN: Duration = Duration::from_secs(3);

/// What the members say of their cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Members {
    leader: Option<String>,
    paused: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    /// Every pod is up to date and well.
    Done,
    /// Something has to happen first.
    Wait(String),
    /// Delete this one.
    Replace(&'a Pod, &'static str),
    /// A person has to decide.
    Refuse(&'static str),
}

/// One pod at a time, and none as long as one that is up to date is not well: a change that breaks the members stops at
/// the first of them. One that does not work anyway goes before those that do, so that a broken change can be mended by
/// the next.
fn next<'a>(set: &'a StatefulSet, members: &Members) -> Step<'a> {
    let Some(revision) = &set.revision else {
        return Step::Wait("for the control plane to see the change".to_owned());
    };
    let leads = |pod: &Pod| members.leader.as_deref() == Some(&*pod.name);
    if let Some(pod) = set.pods.iter().find(|pod| pod.ending) {
        return Step::Wait(format!("for {} to end", pod.name));
    }
    let (current, outdated): (Vec<&Pod>, Vec<&Pod>) =
        set.pods.iter().partition(|pod| pod.revision == *revision);
    if let Some(pod) = current.iter().find(|pod| !pod.ready) {
        return Step::Wait(format!("for {} to be ready", pod.name));
    }
    if set.pods.len() < set.replicas {
        let missing = set.replicas - set.pods.len();
        return Step::Wait(format!("for {missing} more of {} pods", set.replicas));
    }
    if !outdated.is_empty() && members.paused {
        return Step::Refuse(
            "the cluster is paused, so a leader that is stopped would not hand over: `howdah resume` first",
        );
    }
    if let Some(pod) = outdated.iter().rev().find(|pod| !pod.ready && !leads(pod)) {
        return Step::Replace(pod, "is not ready");
    }
    if members.leader.is_none() {
        return Step::Wait("for a leader".to_owned());
    }
    if let Some(pod) = outdated.iter().rev().find(|pod| !leads(pod)) {
        return Step::Replace(pod, "is a replica");
    }
    match outdated.first() {
        Some(pod) => Step::Replace(pod, "leads and hands over"),
        None => Step::Done,
    }
}

pub(super) async fn rollout(context: &Context, ui: &mut dyn Ui, args: RolloutArgs) -> anyhow::Result<Exit> {
    let workloads = Workloads::new(args.namespace.clone());
    let patience = Duration::from_secs(args.timeout);
    let (mut since, mut said, mut replaced) = (Instant::now(), String::new(), 0_usize);
    loop {
        let waiting = match workloads.look(&args.statefulset).await {
            Ok(set) => match next(&set, &ask(context, &set).await) {
                Step::Done => {
                    ui.say(&match replaced {
                        0 => format!("{}: every pod is up to date", args.statefulset),
                        _ => format!(
                            "{}: {replaced} replaced, every pod is up to date",
                            args.statefulset
                        ),
                    });
                    return Ok(Exit::Ok);
                }
                Step::Refuse(why) => return Err(CliError::refused(why).into()),
                Step::Wait(what) => what,
                Step::Replace(pod, why) => {
                    ui.say(&format!("replacing {}, which {why}", pod.name));
                    workloads.delete(pod).await?;
                    (since, replaced) = (Instant::now(), replaced + 1);
                    format!("for {} to end", pod.name)
                }
            },
            Err(error) => format!("for the API server: {error}"),
        };
        if waiting != said {
            ui.say(&format!("waiting {waiting}"));
            said = waiting;
        }
        if since.elapsed() > patience {
            return Err(CliError::refused(format!(
                "nothing more happened within {} s (--timeout): waited {said}",
                args.timeout
            ))
            .into());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Any member knows; those that are ready are asked first. What one only remembers counts for nothing.
async fn ask(context: &Context, set: &StatefulSet) -> Members {
    let mut pods: Vec<&Pod> = set.pods.iter().filter(|pod| !pod.ending).collect();
    pods.sort_by_key(|pod| !pod.ready);
    for url in pods.iter().filter_map(|pod| pod.api.as_deref()) {
        let answer = context.client.get(&format!("{url}/cluster"), ASK_WITHIN).await;
        let view = answer
            .ok()
            .and_then(|answer| ClusterView::from_json(&answer.json()?));
        if let Some(view) = view.filter(|view| view.seen_ago.is_none()) {
            return Members {
                leader: view.leader().map(|member| member.name.to_string()),
                paused: view.pause,
            };
        }
    }
    Members::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `0:b!` is pod 0 of revision b, not ready; `1:a-` one that is ending.
    fn set(pods: &str) -> StatefulSet {
        let pod = |text: &str| Pod {
            name: format!("pg-{}", &text[..1]),
            revision: text[2..3].to_owned(),
            ready: !text.ends_with(['!', '-']),
            ending: text.ends_with('-'),
            ..Pod::default()
        };
        StatefulSet {
            replicas: 3,
            revision: Some("b".to_owned()),
            pods: pods.split_whitespace().map(pod).collect(),
        }
    }

    fn step(pods: &str, leader: Option<&str>) -> String {
        let members = Members {
            leader: leader.map(str::to_owned),
            paused: false,
        };
        match next(&set(pods), &members) {
            Step::Replace(pod, why) => format!("{} {why}", pod.name),
            Step::Wait(what) => format!("wait {what}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn replicas_go_first_and_the_leader_last_whatever_its_number() {
        let leader = Some("pg-2");
        assert_eq!(step("0:a 1:a 2:a", leader), "pg-1 is a replica");
        assert_eq!(step("0:a 1:a- 2:a", leader), "wait for pg-1 to end");
        assert_eq!(step("0:a 2:a", leader), "wait for 1 more of 3 pods");
        assert_eq!(step("0:a 1:b! 2:a", leader), "wait for pg-1 to be ready");
        assert_eq!(step("0:a 1:b 2:a", leader), "pg-0 is a replica");
        assert_eq!(step("0:b 1:b 2:a", leader), "pg-2 leads and hands over");
        assert_eq!(step("0:b 1:b 2:b!", Some("pg-0")), "wait for pg-2 to be ready");
        assert_eq!(step("0:b 1:b 2:b", Some("pg-0")), "Done");
    }

    #[test]
    fn nobody_is_stopped_while_nobody_leads_and_nothing_is_done_then() {
        assert_eq!(step("0:a 1:a 2:a", None), "wait for a leader");
        assert_eq!(step("0:b 1:b 2:b", None), "wait for a leader");
    }

    #[test]
    fn a_broken_change_stops_at_its_first_member_and_is_mended_there() {
        let leader = Some("pg-0");
        assert_eq!(step("0:a 1:a! 2:b!", leader), "wait for pg-2 to be ready");
        // The next change: what was broken is outdated now, and goes before those that work.
        assert_eq!(step("0:a 1:a 2:x!", leader), "pg-2 is not ready");
        assert_eq!(step("0:x! 1:x! 2:x!", None), "pg-2 is not ready");
        assert_eq!(step("0:a! 1:b 2:b", leader), "pg-0 leads and hands over");
    }

    #[test]
    fn nothing_is_replaced_in_a_paused_cluster_or_before_the_change_was_seen() {
        let paused = Members {
            leader: Some("pg-0".to_owned()),
            paused: true,
        };
        assert!(matches!(next(&set("0:a 1:a 2:a"), &paused), Step::Refuse(_)));
        assert_eq!(next(&set("0:b 1:b 2:b"), &paused), Step::Done);
        let mut early = set("0:a 1:a 2:a");
        early.revision = None;
        assert!(matches!(next(&early, &Members::default()), Step::Wait(_)));
    }
}
