//! `dsn` and `query`: whom to connect to, and SQL there (contract: ctl §3).

use std::time::Duration;

use jiff::Zoned;
use serde_json::Value;

use super::{
    CliError, Context, DsnArgs, Format, QueryArgs, RoleFilter,
    source::Source,
    table::{Column, Table},
    targets,
    ui::Ui,
};
use crate::{
    api::cluster::{ClusterView, MemberView},
    exit::Exit,
    postgres::query::{Address, Said, Shell, Target},
};

/// For a connection; a statement takes as long as it takes.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Whom a person means: a member by name, or any with a role.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    Member(String),
    Role(RoleFilter),
}

impl Whom {
    fn of(role: Option<RoleFilter>, member: Option<String>) -> Result<Option<Self>, CliError> {
        match (role, member) {
            (Some(_), Some(_)) => Err(CliError::refused(
                "--role and --member are mutually exclusive options",
            )),
            (Some(role), None) => Ok(Some(Self::Role(role))),
            (None, Some(member)) => Ok(Some(Self::Member(member))),
            (None, None) => Ok(None),
        }
    }

    /// The first that fits and says where its postgres is.
    fn find<'a>(&self, view: &'a ClusterView) -> Option<(&'a MemberView, &'a (String, u16))> {
        let mut fitting = view.members.iter().filter(|member| match self {
            Self::Member(name) => member.name.as_str() == name,
            Self::Role(role) => targets::has_role(member, *role),
        });
        fitting.find_map(|member| Some((member, member.address.as_ref()?)))
    }

    /// What is to be true of the server found, as PostgreSQL itself says it.
    const fn in_recovery(&self) -> Option<bool> {
        match self {
            Self::Role(RoleFilter::Primary) => Some(false),
            Self::Role(RoleFilter::Replica | RoleFilter::Standby | RoleFilter::StandbyLeader) => Some(true),
            Self::Role(RoleFilter::Leader | RoleFilter::Any) | Self::Member(_) => None,
        }
    }

    /// The contract's words for "nobody".
    fn nobody(whom: Option<&Self>) -> String {
        match whom {
            Some(Self::Role(role)) => {
                format!("No connection to role {} is available", targets::role_word(*role))
            }
            Some(Self::Member(name)) => format!("No connection to member {name} is available"),
            None => "No connection is available".to_owned(),
        }
    }
}

pub(super) async fn dsn(context: &Context, ui: &mut dyn Ui, args: DsnArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let whom = Whom::of(args.role, args.member)?.unwrap_or(Whom::Role(RoleFilter::Leader));
    let source = Source::load(context, ui).await?;
    match whom.find(&source.view) {
        Some((_, (host, port))) => {
            ui.say(&format!("host={host} port={port}"));
            Ok(Exit::Ok)
        }
        None => Err(CliError::refused("Can not find a suitable member").into()),
    }
}

pub(super) async fn query(context: &Context, ui: &mut dyn Ui, args: QueryArgs) -> anyhow::Result<Exit> {
    context.must_be_ours(args.cluster.as_ref())?;
    let whom = Whom::of(args.role, args.member)?;
    let sql = match (args.command, args.file) {
        (Some(_), Some(_)) => {
            return Err(CliError::refused("--file and --command are mutually exclusive options").into());
        }
        (Some(sql), None) => sql,
        (None, Some(path)) => read(&path)?,
        (None, None) => {
            return Err(CliError::refused("You need to specify either --command or --file").into());
        }
    };
    let password = match args.password {
        true => Some(
            ui.secret("Password: ")
                .map_err(|_| CliError::Aborted)?
                .ok_or(CliError::Aborted)?,
        ),
        false => None,
    };
    let every = super::interval(args.watch2, args.watch);
    loop {
        let source = Source::load(context, ui).await?;
        let login = |address: &(String, u16)| {
            let mut target = context.login.clone()?;
            (target.address, target.port) = (Address::Tcp(address.0.clone()), address.1);
            if let Some(user) = &args.username {
                // Another's password is not the superuser's.
                if *user != target.user {
                    target.password = None;
                }
                target.user.clone_from(user);
            }
            if password.is_some() {
                target.password.clone_from(&password);
            }
            target.dbname.clone_from(&args.dbname);
            Some(target)
        };
        let found = whom.clone().unwrap_or(Whom::Role(RoleFilter::Any));
        let target = found.find(&source.view).and_then(|(_, address)| login(address));
        let answer = match target {
            Some(target) => ask(&target, &found, &sql, whom.as_ref()).await,
            None => Answer::failed(&Whom::nobody(whom.as_ref())),
        };
        let text = answer.render(args.format, &args.delimiter);
        if !text.is_empty() {
            ui.say(&text);
        }
        let exit = if answer.failed { Exit::Failed } else { Exit::Ok };
        let Some(every) = every else { return Ok(exit) };
        if ui.is_gone() {
            return Ok(exit);
        }
        tokio::time::sleep(every).await;
    }
}

fn read(path: &str) -> Result<String, CliError> {
    let text = match path {
        "-" => std::io::read_to_string(std::io::stdin()),
        path => std::fs::read_to_string(path),
    };
    text.map_err(|error| CliError::refused(format!("cannot read {path}: {error}")))
}

async fn ask(target: &Target, whom: &Whom, sql: &str, asked: Option<&Whom>) -> Answer {
    let shell = match Shell::open(target, CONNECT_WITHIN).await {
        Ok(shell) => shell,
        Err(error) => return Answer::failed(&format!("ERROR, {error}")),
    };
    if let Some(wanted) = whom.in_recovery() {
        let said = shell.run("SELECT pg_catalog.pg_is_in_recovery()").await;
        let is = said.ok().and_then(|said| said.rows.first()?.first()?.clone());
        if is.as_deref() != Some(if wanted { "t" } else { "f" }) {
            return Answer::failed(&Whom::nobody(asked));
        }
    }
    match shell.run(sql).await {
        Ok(said) => Answer { said, failed: false },
        Err(error) => Answer::failed(&format!("ERROR, {error}")),
    }
}

/// Rows, or one row that says why there are none.
struct Answer {
    said: Said,
    failed: bool,
}

impl Answer {
    /// `<time>\tERROR, SQLSTATE: …`
    fn failed(text: &str) -> Self {
        let time = Zoned::now().strftime("%Y-%m-%d %H:%M:%S.%6f").to_string();
        Self {
            said: Said {
                columns: Vec::new(),
                rows: vec![vec![Some(time), Some(text.to_owned())]],
            },
            failed: true,
        }
    }

    fn render(&self, format: Format, delimiter: &str) -> String {
        let Said { columns, rows } = &self.said;
        if self.failed || matches!(format, Format::Tsv) {
            let line = |cells: Vec<&str>| cells.join(delimiter);
            let head = (!columns.is_empty()).then(|| line(columns.iter().map(String::as_str).collect()));
            let rows = rows.iter().map(|row| {
                line(
                    row.iter()
                        .map(|cell| cell.as_deref().unwrap_or_default())
                        .collect(),
                )
            });
            return head.into_iter().chain(rows).collect::<Vec<_>>().join("\n");
        }
        if columns.is_empty() {
            return String::new();
        }
        let cell = |cell: &Option<String>| cell.clone().map_or(Value::Null, Value::from);
        Table {
            title: None,
            columns: columns.iter().map(|name| Column::named(name)).collect(),
            rows: rows.iter().map(|row| row.iter().map(cell).collect()).collect(),
        }
        .render(format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::{HEALTHY, cluster};

    #[test]
    fn the_first_member_that_fits_is_taken() {
        let view = ClusterView::of("demo", &cluster(HEALTHY));
        let port = |whom: Whom| whom.find(&view).map(|(member, _)| member.name.to_string());
        assert_eq!(port(Whom::Role(RoleFilter::Leader)).as_deref(), Some("n1"));
        assert_eq!(port(Whom::Role(RoleFilter::Replica)).as_deref(), Some("n2"));
        assert_eq!(port(Whom::Member("n2".into())).as_deref(), Some("n2"));
        assert_eq!(port(Whom::Member("n9".into())), None);
        assert_eq!(port(Whom::Role(RoleFilter::StandbyLeader)), None);
    }

    #[test]
    fn rows_in_every_format() {
        let said = Said {
            columns: vec!["a".into(), "b".into()],
            rows: vec![
                vec![Some("1".into()), None],
                vec![Some("2".into()), Some("x".into())],
            ],
        };
        let answer = Answer { said, failed: false };
        assert_eq!(answer.render(Format::Tsv, "\t"), "a\tb\n1\t\n2\tx");
        assert_eq!(answer.render(Format::Tsv, ";"), "a;b\n1;\n2;x");
        insta::assert_snapshot!(answer.render(Format::Json, "\t"), @r#"[{"a": "1", "b": null}, {"a": "2", "b": "x"}]"#);
        let none = Answer::failed("No connection is available");
        assert!(
            none.render(Format::Json, "\t")
                .ends_with("\tNo connection is available")
        );
    }
}
