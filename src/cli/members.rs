//! The member table of `list` and `topology` (contract: ctl §2). Pure.

use serde_json::{Map, Value};

use super::{
    args::Format,
    table::{Column, Table},
};
use crate::api::cluster::{ClusterView, MemberRole, MemberView, Position, Positions};

/// Order and prefix of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// By name.
    Flat,
    /// Followers below whom they follow.
    Tree,
}

/// How the table is to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) shape: Shape,
    pub(super) format: Format,
    /// Show the optional columns even if nobody has a value there.
    pub(super) extended: bool,
}

impl Look {
    pub(super) const PLAIN: Self = Self {
        shape: Shape::Flat,
        format: Format::Pretty,
        extended: false,
    };
}

/// The table and, when drawn, the lines about maintenance mode and a scheduled switchover below it.
/// `identity` is the content of `/initialize`.
pub(super) fn render(view: &ClusterView, identity: Option<&str>, look: Look) -> String {
    let drawn = look.format == Format::Pretty;
    let text = table(view, identity, look, drawn).render(look.format);
    if drawn { text + &footer(view) } else { text }
}

fn footer(view: &ClusterView) -> String {
    let mut text = String::new();
    if view.pause {
        text.push_str("\n Maintenance mode: on");
    }
    if let Some(scheduled) = &view.scheduled_switchover {
        text += &format!("\n Switchover scheduled at: {}", scheduled.at);
        for (word, name) in [("from", &scheduled.from), ("to", &scheduled.to)] {
            if let Some(name) = name {
                text += &format!("\n{word:>24}: {name}");
            }
        }
    }
    text
}

fn table(view: &ClusterView, identity: Option<&str>, look: Look, drawn: bool) -> Table {
    let optional = [
        (
            Column::left("Pending restart"),
            view.members.iter().any(|m| m.pending_restart),
        ),
        (
            Column::left("Pending restart reason"),
            view.members.iter().any(|m| !m.pending_restart_reason.is_empty()),
        ),
        (
            Column::left("Scheduled restart"),
            view.members.iter().any(|m| m.scheduled_restart.is_some()),
        ),
        (
            Column::left("Reason"),
            view.members.iter().any(|m| m.reason.is_some()),
        ),
        (
            Column::left("Tags"),
            view.members.iter().any(|m| !m.tags.is_empty()),
        ),
    ];
    // Scripts count the columns of an extended table, and know nothing of reasons.
    let forced = |column: &Column| look.extended && column.name != "Reason";
    let show: Vec<bool> = optional
        .iter()
        .map(|(column, used)| *used || forced(column))
        .collect();
    let mut columns = vec![
        Column::left("Cluster").in_title(),
        Column::left("Member"),
        Column::left("Host"),
        Column::left("Role"),
        Column::left("State"),
        Column::right("TL"),
        Column::right("Receive LSN"),
        Column::right("Receive Lag").headed("Lag"),
        Column::right("Replay LSN"),
        Column::right("Replay Lag").headed("Lag"),
    ];
    columns.extend(
        optional
            .into_iter()
            .zip(&show)
            .filter(|(_, show)| **show)
            .map(|((column, _), _)| column),
    );
    let with_port = ports_matter(view);
    let rows = order(view, look.shape)
        .into_iter()
        .map(|(prefix, member)| {
            let mut row = vec![
                view.scope.clone().into(),
                format!("{prefix}{}", member.name).into(),
                host(member, with_port).into(),
                role(member.role).into(),
                member.state.clone().into(),
                member
                    .timeline
                    .map_or_else(|| "".into(), |timeline| timeline.0.into()),
            ];
            row.extend(positions(member));
            let extra = [
                if member.pending_restart { "*" } else { "" }.into(),
                reasons(&member.pending_restart_reason, drawn).into(),
                schedule(member.scheduled_restart.as_ref()).into(),
                member.reason.clone().unwrap_or_default().into(),
                if member.tags.is_empty() {
                    "".into()
                } else {
                    member.tags.clone().into()
                },
            ];
            row.extend(
                extra
                    .into_iter()
                    .zip(&show)
                    .filter(|(_, show)| **show)
                    .map(|(cell, _)| cell),
            );
            row
        })
        .collect();
    let identity = match identity {
        None => "uninitialized",
        Some("") => "initializing",
        Some(id) => id,
    };
    Table {
        title: Some(format!("Cluster: {} ({identity})", view.scope)),
        columns,
        rows,
    }
}

const fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Leader => "Leader",
        MemberRole::StandbyLeader => "Standby Leader",
        MemberRole::SyncStandby => "Sync Standby",
        MemberRole::QuorumStandby => "Quorum Standby",
        MemberRole::Replica => "Replica",
    }
}

/// Ports are shown when the host alone would not tell the members apart or the port is not the usual one.
fn ports_matter(view: &ClusterView) -> bool {
    let addresses: Vec<&(String, u16)> = view.members.iter().filter_map(|m| m.address.as_ref()).collect();
    let mut hosts: Vec<&str> = addresses.iter().map(|(host, _)| host.as_str()).collect();
    hosts.sort_unstable();
    addresses.iter().any(|(_, port)| *port != 5432) || hosts.windows(2).any(|pair| pair[0] == pair[1])
}

fn host(member: &MemberView, with_port: bool) -> String {
    match &member.address {
        None => String::new(),
        Some((host, port)) if with_port => format!("{host}:{port}"),
        Some((host, _)) => host.clone(),
    }
}

/// Receive LSN, Receive Lag, Replay LSN, Replay Lag.
fn positions(member: &MemberView) -> [Value; 4] {
    let Some(Positions {
        receive,
        replay,
        last,
    }) = &member.positions
    else {
        return ["".into(), "".into(), "".into(), "".into()];
    };
    let (receive, replay) = match (receive, replay, member.state.as_str()) {
        (None, None, "streaming") => (last, &None),
        (None, None, _) => (&None, last),
        _ => (receive, replay),
    };
    let lsn =
        |position: &Position| position.map_or_else(|| "unknown".into(), |(lsn, _)| lsn.to_string().into());
    let lag = |position: &Position| position.map_or_else(|| "".into(), |(_, bytes)| megabytes(bytes).into());
    [lsn(receive), lag(receive), lsn(replay), lag(replay)]
}

/// Rounded to the nearest MB, halves to the even one.
fn megabytes(bytes: u64) -> u64 {
    const MB: u64 = 1 << 20;
    let (whole, rest) = (bytes / MB, bytes % MB);
    let up = rest > MB / 2 || (rest == MB / 2 && whole % 2 == 1);
    whole + u64::from(up)
}

fn reasons(reasons: &Map<String, Value>, drawn: bool) -> String {
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let line = |(name, change): (&String, &Value)| {
        let values = format!(
            "{}->{}",
            text(change.get("old_value")),
            text(change.get("new_value"))
        );
        let line = format!("{name}: {values}");
        if drawn && line.chars().count() > 50 {
            format!("{name}: [hidden - too long]")
        } else {
            line
        }
    };
    reasons.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn schedule(restart: Option<&Value>) -> String {
    let text = |key: &str| {
        restart
            .and_then(|restart| restart.get(key))
            .and_then(Value::as_str)
    };
    match (text("schedule"), text("postgres_version")) {
        (None, _) => String::new(),
        (Some(at), None) => at.to_owned(),
        (Some(at), Some(version)) => format!("{at} if version < {version}"),
    }
}

fn order(view: &ClusterView, shape: Shape) -> Vec<(String, &MemberView)> {
    let (Shape::Tree, Some(leader)) = (shape, view.leader()) else {
        return view
            .members
            .iter()
            .map(|member| (String::new(), member))
            .collect();
    };
    let parent = |member: &MemberView| {
        let wanted = member.tags.get("replicatefrom").and_then(Value::as_str);
        let source = wanted
            .and_then(|name| view.member(name))
            .filter(|source| source.name != member.name);
        source.unwrap_or(leader).name.clone()
    };
    let mut rows = vec![(String::new(), leader)];
    let mut left: Vec<&MemberView> = view.members.iter().filter(|m| m.name != leader.name).collect();
    // Depth first: those below the last row placed come before its siblings.
    let mut path = vec![leader];
    while let Some(above) = path.last() {
        match left.iter().position(|member| parent(member) == above.name) {
            Some(index) => {
                let member = left.remove(index);
                rows.push((format!("{}+ ", "  ".repeat(path.len() - 1)), member));
                path.push(member);
            }
            None => {
                path.pop();
            }
        }
    }
    // Members that follow each other in a circle hang below nobody.
    rows.extend(left.into_iter().map(|member| ("+ ".to_owned(), member)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::{HEALTHY, cluster};

    const MORE: &[(&str, &str)] = &[
        ("config", r#"{"pause":true}"#),
        ("status", r#"{"optime":94372168}"#),
        (
            "members/n3",
            r#"{"conn_url":"postgres://10.1.0.3:5433/postgres","state":"running","replication_state":"in archive recovery","xlog_location":83886408,"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"101"},"long":{"old_value":"xxxxxxxxxxxxxxxxxxxxxxxxx","new_value":"yyyyyyyyyyyyyyyyyyyyyyyyy"}},"tags":{"nofailover":true,"replicatefrom":"n2"},"scheduled_restart":{"schedule":"2026-02-01T03:00:00+00:00","postgres_version":"17.5"}}"#,
        ),
        ("members/n4", r#"{"state":"creating replica"}"#),
        (
            "failover",
            r#"{"leader":"n1","member":"n2","scheduled_at":"2026-02-01T03:00:00+00:00"}"#,
        ),
    ];

    fn show(more: &[(&str, &str)], look: Look) -> String {
        let view = ClusterView::of("demo", &cluster(&[HEALTHY, more].concat()));
        format!("\n{}", render(&view, Some("7400000000000000001"), look))
    }

    #[test]
    fn a_healthy_cluster() {
        assert_eq!(
            show(&[], Look::PLAIN),
            "
+ Cluster: demo (7400000000000000001) ----+----+-------------+-----+------------+-----+
| Member | Host     | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag |
+--------+----------+---------+-----------+----+-------------+-----+------------+-----+
| n1     | 10.1.0.1 | Leader  | running   |  4 |             |     |            |     |
| n2     | 10.1.0.2 | Replica | streaming |  4 |   0/5000148 |   0 |  0/5000108 |   0 |
+--------+----------+---------+-----------+----+-------------+-----+------------+-----+"
        );
    }

    #[test]
    fn everything_a_member_can_have() {
        let text = show(MORE, Look::PLAIN);
        for line in [
            "| n2     | 10.1.0.2:5432 | Replica | streaming           |  4 |   0/5000148 |  10 |  0/5000108 |  10 |",
            "| n3     | 10.1.0.3:5433 | Replica | in archive recovery |    |     unknown |     |  0/5000148 |  10 | *               | max_connections: 100->101 | 2026-02-01T03:00:00+00:00 if version < 17.5 | nofailover: true  |",
            "long: [hidden - too long]",
            "| n4     |               | Replica | creating replica    |    |     unknown |     |    unknown |     |",
            "\n Maintenance mode: on\n Switchover scheduled at: 2026-02-01T03:00:00+00:00\n                    from: n1\n                      to: n2",
        ] {
            assert!(text.contains(line), "{line}\nmissing in{text}");
        }
    }

    #[test]
    fn machine_formats() {
        let with = |format| {
            show(
                &[],
                Look {
                    format,
                    ..Look::PLAIN
                },
            )
        };
        assert_eq!(
            with(Format::Tsv),
            "
Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN\tReceive Lag\tReplay LSN\tReplay Lag
demo\tn1\t10.1.0.1\tLeader\trunning\t4\t\t\t\t
demo\tn2\t10.1.0.2\tReplica\tstreaming\t4\t0/5000148\t0\t0/5000108\t0"
        );
        assert_eq!(
            with(Format::Json),
            "\n[{\"Cluster\": \"demo\", \"Member\": \"n1\", \"Host\": \"10.1.0.1\", \"Role\": \"Leader\", \"State\": \"running\", \"TL\": 4}, {\"Cluster\": \"demo\", \"Member\": \"n2\", \"Host\": \"10.1.0.2\", \"Role\": \"Replica\", \"State\": \"streaming\", \"TL\": 4, \"Receive LSN\": \"0/5000148\", \"Receive Lag\": 0, \"Replay LSN\": \"0/5000108\", \"Replay Lag\": 0}]"
        );
        let extended = show(
            &[],
            Look {
                format: Format::Tsv,
                extended: true,
                ..Look::PLAIN
            },
        );
        assert!(extended.contains("\tPending restart\tPending restart reason\tScheduled restart\tTags\n"));
    }

    #[test]
    fn a_tree_hangs_followers_below_their_source() {
        let circle = [
            ("members/n5", r#"{"tags":{"replicatefrom":"n6"}}"#),
            ("members/n6", r#"{"tags":{"replicatefrom":"n5"}}"#),
        ];
        let text = show(
            &[MORE, &circle].concat(),
            Look {
                shape: Shape::Tree,
                ..Look::PLAIN
            },
        );
        let members: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split('|').nth(1))
            .map(str::trim_end)
            .filter(|cell| cell.contains('n'))
            .collect();
        assert_eq!(members, [" n1", " + n2", "   + n3", " + n4", " + n5", " + n6"]);
    }

    #[test]
    fn an_empty_cluster_has_a_title() {
        let view = ClusterView::of("demo", &cluster(&[]));
        let text = render(&view, None, Look::PLAIN);
        assert!(text.starts_with("+ Cluster: demo (uninitialized) "), "{text}");
        assert!(render(&view, Some(""), Look::PLAIN).contains("(initializing)"));
    }

    #[test]
    fn lag_is_rounded_half_to_even() {
        const MB: u64 = 1 << 20;
        for (bytes, shown) in [
            (0, 0),
            (MB / 2, 0),
            (MB / 2 + 1, 1),
            (MB + MB / 2, 2),
            (2 * MB + MB / 2, 2),
        ] {
            assert_eq!(megabytes(bytes), shown, "{bytes}");
        }
    }
}
