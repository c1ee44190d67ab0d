//! `slots`: the replication slots of all members, asked of each. Not a command of `patronictl`.

use serde_json::Value;

use super::{
    Context, SlotsArgs,
    source::Source,
    table::{Column, Table},
    ui::Ui,
};
use crate::exit::Exit;

/// Prints what answered; a member that did not makes the command fail.
pub(super) async fn slots(context: &Context, ui: &mut dyn Ui, args: &SlotsArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = Source::load(context, ui).await?;
    let (mut rows, mut exit) = (Vec::new(), Exit::Ok);
    for member in &source.view.members {
        let Some(base) = member.api_base() else {
            continue;
        };
        match context.ask_status(&format!("{base}/slots")).await {
            Ok(answer) => rows.extend(
                answer
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|slot| row(&member.name.0, slot)),
            ),
            Err(reason) => {
                ui.warn(&format!("{}: failed to get slots: {reason}", member.name));
                exit = Exit::Failed;
            }
        }
    }
    ui.say(&table(rows).render(args.format));
    Ok(exit)
}

fn table(rows: Vec<Vec<Value>>) -> Table {
    Table {
        title: None,
        columns: vec![
            Column::left("Member"),
            Column::left("Slot"),
            Column::left("Type"),
            Column::left("Owner"),
            Column::left("Active"),
            Column::left("WAL status"),
            Column::right("Restart LSN"),
            Column::right("Retained bytes"),
        ],
        rows,
    }
}

/// An answer of GET /slots.
fn row(member: &str, slot: &Value) -> Vec<Value> {
    let active = slot["active"]
        .as_bool()
        .map_or("", |active| if active { "yes" } else { "no" });
    let field = |name: &str| slot[name].clone();
    vec![
        member.into(),
        field("name"),
        field("type"),
        field("owner"),
        active.into(),
        field("wal_status"),
        field("restart_lsn"),
        field("retained_bytes"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Format;

    #[test]
    fn one_line_per_slot() {
        let slot = serde_json::json!({"name": "n2", "type": "physical", "owner": "member", "member": "n2",
            "active": true, "wal_status": "reserved", "restart_lsn": "0/5000148", "retained_bytes": 64});
        let idle = serde_json::json!({"name": "x", "type": "logical", "owner": "unknown", "active": false,
            "wal_status": null, "restart_lsn": null, "retained_bytes": null});
        let rows = vec![row("n1", &slot), row("n1", &idle)];
        insta::assert_snapshot!(table(rows).render(Format::Pretty), @r"
        +--------+------+----------+---------+--------+------------+-------------+----------------+
        | Member | Slot | Type     | Owner   | Active | WAL status | Restart LSN | Retained bytes |
        +--------+------+----------+---------+--------+------------+-------------+----------------+
        | n1     | n2   | physical | member  | yes    | reserved   |   0/5000148 |             64 |
        | n1     | x    | logical  | unknown | no     |            |             |                |
        +--------+------+----------+---------+--------+------------+-------------+----------------+
        ");
    }
}
