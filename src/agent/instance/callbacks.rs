//! The operator's commands: callbacks that are told what happened, and hooks that are asked before it happens
//! (contract: HA rules §16; `pre_promote` §3, `before_stop` environment §3).
//!
//! | command | when | waits for it | its failure |
//! |---|---|---|---|
//! | `on_start`, `on_stop`, `on_restart`, `on_role_change` | afterwards | nobody | a warning |
//! | `on_reload` | afterwards, on a lane of its own | nobody | a warning |
//! | `pre_promote` | before the promotion is requested | the promotion | no promotion |
//! | `before_stop` | before the signal | the stop, for half of its first rung | a warning |
//!
//! A callback of a lane that still runs when the next one comes is ended first, with all its children: what it was
//! told is outdated.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::chain;
use crate::{
    config,
    postgres::{command::Command, options::split_words},
};

/// What a callback is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Postgres was started.
    Start,
    /// Postgres was stopped.
    Stop,
    /// Postgres was stopped and started again.
    Restart,
    /// The configuration was read again.
    Reload,
    /// It was promoted, or came back as the other kind.
    RoleChange,
}

impl Event {
    /// The argument a callback gets, which is also the name of its setting.
    const fn action(self) -> &'static str {
        match self {
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Restart => "on_restart",
            Self::Reload => "on_reload",
            Self::RoleChange => "on_role_change",
        }
    }

    fn command(self, callbacks: &config::Callbacks) -> Option<&str> {
        match self {
            Self::Start => callbacks.on_start.as_deref(),
            Self::Stop => callbacks.on_stop.as_deref(),
            Self::Restart => callbacks.on_restart.as_deref(),
            Self::Reload => callbacks.on_reload.as_deref(),
            Self::RoleChange => callbacks.on_role_change.as_deref(),
        }
    }
}

/// The running callbacks, one per lane. Each is a task that ends with its command.
#[derive(Default)]
pub(super) struct Callbacks {
    state: Lane,
    reload: Lane,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callbacks")
    }
}

#[derive(Default)]
struct Lane(Mutex<Option<(CancellationToken, JoinHandle<()>)>>);

impl Callbacks {
    /// Starts the command for an event, if there is one. `role` is `primary` or `replica`.
    pub(super) fn fire(&self, commands: &config::Callbacks, event: Event, role: &'static str, scope: &str) {
        let Some(line) = event.command(commands) else {
            return;
        };
        let command = match parse(line) {
            Ok(Some(command)) => command.arg(event.action()).arg(role).arg(scope),
            Ok(None) => return,
            Err(reason) => return warn!(command = line, reason, "this callback cannot be run"),
        };
        let lane = if event == Event::Reload {
            &self.reload
        } else {
            &self.state
        };
        info!(
            command = line,
            action = event.action(),
            role,
            "running a callback"
        );
        lane.run(event.action(), command);
    }

    /// Waits for what still runs, e.g. `on_stop` before the process ends; then it is ended.
    pub(super) async fn settle(&self, limit: Duration) {
        for lane in [&self.state, &self.reload] {
            let Some((cancel, mut task)) = lane.take() else {
                continue;
            };
            if timeout(limit, &mut task).await.is_err() {
                cancel.cancel();
                // Bounded: a cancelled command is killed after its grace.
                drop(task.await);
            }
        }
    }
}

impl Lane {
    fn take(&self) -> Option<(CancellationToken, JoinHandle<()>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn run(&self, action: &'static str, command: Command) {
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = slot.take();
        if let Some((cancel, _)) = &previous {
            cancel.cancel();
        }
        let task = tokio::spawn(async move {
            if let Some((_, task)) = previous {
                drop(task.await);
            }
            // One that came and went while its predecessor was being ended has nothing to say any more.
            if token.is_cancelled() {
                return;
            }
            if let Err(error) = command.run(&token).await {
                warn!(action, error = chain(&error), "a callback failed");
            }
        });
        *slot = Some((cancel, task));
    }
}

/// A command line as a shell would split it; nothing is expanded.
fn parse(line: &str) -> Result<Option<Command>, String> {
    let words = split_words(line).map_err(|error| chain(&error))?;
    Ok(words
        .split_first()
        .map(|(program, arguments)| Command::new(program).args(arguments)))
}

/// Runs a hook to its end. No hook, no objection.
pub(super) async fn ask(
    name: &str,
    line: Option<&str>,
    limit: Duration,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let Some(line) = line else { return Ok(()) };
    let command = parse(line).map_err(|reason| format!("{name}: {reason}"))?;
    let Some(command) = command else { return Ok(()) };
    info!(command = line, "running {name}");
    let done = command.deadline(limit).run(cancel).await;
    done.map(drop)
        .map_err(|error| format!("{name}: {}", chain(&error)))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn script(dir: &Path, text: &str) -> String {
        let path = dir.join("callback.sh");
        fs::write(&path, text).expect("writable");
        format!("sh {} 'a b'", path.display())
    }

    fn all(line: &str) -> config::Callbacks {
        config::Callbacks {
            on_start: Some(line.to_owned()),
            on_role_change: Some(line.to_owned()),
            on_reload: Some(line.to_owned()),
            ..config::Callbacks::default()
        }
    }

    #[tokio::test]
    async fn a_callback_is_told_action_role_and_scope() {
        let dir = tempfile::tempdir().expect("temp dir");
        let out = dir.path().join("out");
        let commands = all(&script(dir.path(), &format!("echo \"$@\" > {}", out.display())));
        let callbacks = Callbacks::default();
        callbacks.fire(&commands, Event::Stop, "replica", "demo");
        callbacks.fire(&commands, Event::RoleChange, "primary", "demo");
        callbacks.settle(9 * S).await;
        assert_eq!(
            fs::read_to_string(out).expect("it ran"),
            "a b on_role_change primary demo\n"
        );
    }

    #[tokio::test]
    async fn the_next_one_ends_the_one_before_but_not_another_lane() {
        let dir = tempfile::tempdir().expect("temp dir");
        let out = dir.path().join("out");
        let text = format!(
            "echo begin $2 >> {out}; [ $2 = on_start ] && sleep 60; [ $2 = on_reload ] && sleep 0.5; echo end $2 >> {out}",
            out = out.display()
        );
        let commands = all(&script(dir.path(), &text));
        let callbacks = Callbacks::default();
        callbacks.fire(&commands, Event::Reload, "replica", "demo");
        callbacks.fire(&commands, Event::Start, "replica", "demo");
        while !fs::read_to_string(&out)
            .unwrap_or_default()
            .contains("begin on_start")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        callbacks.fire(&commands, Event::RoleChange, "replica", "demo");
        callbacks.settle(9 * S).await;
        let text = fs::read_to_string(out).expect("they ran");
        assert!(
            text.contains("end on_role_change") && text.contains("end on_reload"),
            "{text}"
        );
        assert!(!text.contains("end on_start"), "{text}");
    }

    #[tokio::test]
    async fn a_hook_that_fails_or_hangs_says_no() {
        let cancel = CancellationToken::new();
        assert_eq!(ask("pre_promote", None, S, &cancel).await, Ok(()));
        assert_eq!(ask("pre_promote", Some("true"), S, &cancel).await, Ok(()));
        let refused = ask("pre_promote", Some("sh -c 'echo no; exit 3'"), S, &cancel).await;
        assert!(
            refused
                .as_ref()
                .is_err_and(|e| e.contains("pre_promote") && e.contains("no")),
            "{refused:?}"
        );
        let hung = ask(
            "before_stop",
            Some("sleep 60"),
            Duration::from_millis(50),
            &cancel,
        )
        .await;
        assert!(hung.is_err());
        assert!(ask("before_stop", Some("'"), S, &cancel).await.is_err());
    }
}
