//! `why`: for every member, could it lead now, and if not, which rule says no; and what is promised meanwhile. Every
//! member is asked itself: it judges by the same rules it would act by.

use super::{
    Context,
    args::{Format, HistoryArgs},
    source::Source,
    table::{Column, Table},
    ui::Ui,
};
use crate::{
    api::why::{UNKNOWN, Word, all},
    exit::Exit,
};

pub(super) async fn why(context: &Context, ui: &mut dyn Ui, args: &HistoryArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let source = Source::load(context, ui).await?;
    let members = source.view.members.iter();
    let members: Vec<_> = members
        .map(|member| (member.name.clone(), member.api_url.clone()))
        .collect();
    let words = all(&context.client, &members).await;
    ui.say(&render(&words, args.format));
    let silent = words.iter().any(|word| word.candidacy == UNKNOWN);
    Ok(if silent { Exit::Failed } else { Exit::Ok })
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
    use crate::api::why::word;

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
