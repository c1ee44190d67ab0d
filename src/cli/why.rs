//! `why`: for every member, could it lead now, and if not, which rule says no; and what is promised meanwhile. Every
//! member is asked itself: it judges by the same rules it would act by.

use serde_json::Value;

use super::{
    Context,
    args::{Format, HistoryArgs},
    source::Source,
    table::{Column, Table},
    ui::Ui,
};
use crate::{exit::Exit, model::MemberName};

/// What one member said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    member: MemberName,
    candidacy: String,
    because: String,
    promise: Option<String>,
    without_dcs: Option<String>,
}

pub(super) async fn why(context: &Context, ui: &mut dyn Ui, args: &HistoryArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = Source::load(context, ui).await?;
    let ask = source.view.members.iter().map(|member| async {
        let status = context.ask_status(&member.api_url).await;
        word(&member.name, status.as_ref().map_err(String::as_str))
    });
    let words = futures::future::join_all(ask).await;
    ui.say(&render(&words, args.format));
    let silent = words.iter().any(|word| word.candidacy == UNKNOWN);
    Ok(if silent { Exit::Failed } else { Exit::Ok })
}

const UNKNOWN: &str = "unknown";

fn word(member: &MemberName, status: Result<&Value, &str>) -> Word {
    let unknown = |because: String| Word {
        member: member.clone(),
        candidacy: UNKNOWN.to_owned(),
        because,
        promise: None,
        without_dcs: None,
    };
    let status = match status {
        Ok(status) => status,
        Err(reason) => return unknown(reason.to_owned()),
    };
    let text = |field: &str| status["howdah"][field].as_str().map(str::to_owned);
    let Some(candidacy) = text("candidacy") else {
        return unknown("it does not say; a member that runs Patroni?".to_owned());
    };
    let leads = candidacy == "leads";
    Word {
        member: member.clone(),
        because: text("because").unwrap_or_default(),
        promise: text("promise").filter(|_| leads),
        without_dcs: text("without_dcs").filter(|_| leads),
        candidacy,
    }
}

fn render(words: &[Word], format: Format) -> String {
    let row = |word: &Word| {
        vec![
            word.member.0.clone().into(),
            word.candidacy.clone().into(),
            word.because.clone().into(),
        ]
    };
    let table = Table {
        title: None,
        columns: vec![
            Column::left("Member"),
            Column::left("Could lead").headed("If the lock came free now"),
            Column::left("Because"),
        ],
        rows: words.iter().map(row).collect(),
    };
    let mut text = table.render(format);
    if format == Format::Pretty {
        let leader = |pick: fn(&Word) -> Option<&String>| words.iter().find_map(pick);
        if let Some(promise) = leader(|word| word.promise.as_ref()) {
            text += &format!("\n Replication: {promise}");
        }
        if let Some(outlook) = leader(|word| word.without_dcs.as_ref()) {
            text += &format!("\n Without the DCS: {outlook}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_member_has_its_say() {
        let leader = json!({"howdah": {"candidacy": "leads", "because": "it holds the lock", "promise": "asynchronous",
            "without_dcs": "n1 stays primary"}});
        let replica = json!({"howdah": {"candidacy": "could not lead", "because": "tagged nofailover",
            "promise": "asynchronous"}});
        let words = [
            word(&"n1".into(), Ok(&leader)),
            word(&"n2".into(), Ok(&replica)),
            word(&"n3".into(), Ok(&json!({"state": "running"}))),
            word(&"n4".into(), Err("connection refused")),
        ];
        insta::assert_snapshot!(render(&words, Format::Pretty), @r"
        +--------+---------------------------+----------------------------------------------+
        | Member | If the lock came free now | Because                                      |
        +--------+---------------------------+----------------------------------------------+
        | n1     | leads                     | it holds the lock                            |
        | n2     | could not lead            | tagged nofailover                            |
        | n3     | unknown                   | it does not say; a member that runs Patroni? |
        | n4     | unknown                   | connection refused                           |
        +--------+---------------------------+----------------------------------------------+
         Replication: asynchronous
         Without the DCS: n1 stays primary
        ");
    }
}
