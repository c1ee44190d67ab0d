//! Which members a command means (contract: ctl §1 `--role`, §5 member selection). Pure but for `confirmed`.

use super::{
    CliError, RoleFilter,
    ui::{Ui, confirm},
};
use crate::api::cluster::{ClusterView, MemberRole, MemberView};

pub(super) const fn has_role(member: &MemberView, filter: RoleFilter) -> bool {
    match filter {
        RoleFilter::Any => true,
        RoleFilter::Leader => member.role.leads(),
        RoleFilter::Primary => matches!(member.role, MemberRole::Leader),
        RoleFilter::StandbyLeader => matches!(member.role, MemberRole::StandbyLeader),
        RoleFilter::Replica | RoleFilter::Standby => !member.role.leads(),
    }
}

pub(super) const fn role_word(filter: RoleFilter) -> &'static str {
    match filter {
        RoleFilter::Any => "member",
        RoleFilter::Leader => "leader",
        RoleFilter::Primary => "primary",
        RoleFilter::StandbyLeader => "standby-leader",
        RoleFilter::Replica => "replica",
        RoleFilter::Standby => "standby",
    }
}

/// The named members with that role; all with that role if none is named.
pub(super) fn named<'a>(
    view: &'a ClusterView,
    names: &[String],
    filter: RoleFilter,
) -> Result<Vec<&'a MemberView>, CliError> {
    if let Some(unknown) = names.iter().find(|name| view.member(name).is_none()) {
        return Err(CliError::refused(format!("{unknown} is not a member of cluster")));
    }
    let chosen = |member: &&MemberView| {
        has_role(member, filter)
            && (names.is_empty() || names.iter().any(|name| name == member.name.as_str()))
    };
    let found: Vec<&MemberView> = view.members.iter().filter(chosen).collect();
    if found.is_empty() {
        return Err(CliError::refused(format!(
            "No {} among provided members",
            role_word(filter)
        )));
    }
    Ok(found)
}

/// Asks once for all of them; a no ends the command.
pub(super) fn confirmed(
    ui: &mut dyn Ui,
    action: &str,
    members: &[&MemberView],
    force: bool,
) -> Result<(), CliError> {
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let question = format!("Are you sure you want to {action} members {}?", names.join(", "));
    if force || confirm(ui, &question)? {
        Ok(())
    } else {
        Err(CliError::refused(format!("Aborted {action}")))
    }
}
