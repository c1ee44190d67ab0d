//! The state machine of init, situation by situation.

use super::*;

fn ms(n: u64) -> Boottime {
    Boottime(n * 1_000_000)
}

fn lease(until_ms: u64) -> Deadline {
    Deadline {
        until: ms(until_ms),
        token: 7,
    }
}

fn running() -> State {
    State::running(Limits::default())
}

fn armed(until_ms: u64) -> State {
    let mut state = running();
    state.on(Event::Message(Message::Deadline(lease(until_ms))), ms(0));
    state
}

const TERM: Event = Event::Signal(Meaning::Stop(Stop::HandOver));
const INT: Event = Event::Signal(Meaning::Stop(Stop::Fast));
const QUIT: Event = Event::Signal(Meaning::Stop(Stop::Immediate));
const CRASH: Event = Event::AgentEnded(End::Signaled(9));
const PANIC: Event = Event::AgentEnded(End::Exited(101));

#[test]
fn signals_that_are_not_a_stop_are_passed_on_as_they_are() {
    let on = |meaning| running().on(Event::Signal(meaning), ms(0));
    assert_eq!(on(Meaning::Reload), [Action::Forward(Signal::SIGHUP)]);
    assert_eq!(
        on(Meaning::ToggleDebug),
        [Action::ToggleDebug, Action::Forward(Signal::SIGUSR1)]
    );
    assert_eq!(
        on(Meaning::Dump),
        [Action::Dump, Action::Forward(Signal::SIGUSR2)]
    );
    assert_eq!(on(Meaning::Ignored), []);
    assert_eq!(on(Meaning::Child), []);
}

#[test]
fn each_further_sigterm_is_forwarded_one_step_more_urgent() {
    let mut state = running();
    for expected in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        assert_eq!(state.on(TERM, ms(0)), [Action::Forward(expected)]);
    }
    assert_eq!(state.on(TERM, ms(0)), []);
}

#[test]
fn sigquit_is_bounded_and_not_prolonged_by_another_one() {
    let mut state = running();
    assert_eq!(state.on(QUIT, ms(0)), [Action::Forward(Signal::SIGQUIT)]);
    assert_eq!(state.on(QUIT, ms(4000)), []);
    assert_eq!(state.next_tick(), Some(ms(5000)));
    assert_eq!(state.on(Event::Tick, ms(4999)), []);
    let killed = Action::KillAndFinish(Exit::Dirty, "not stopped in time after SIGQUIT");
    assert_eq!(state.on(Event::Tick, ms(5000)), [killed]);
}

#[test]
fn a_passed_deadline_fences_in_every_phase() {
    let fence = [Action::KillAndFinish(Exit::Fenced, "fence deadline passed")];
    let mut waiting = armed(1000);
    waiting.on(CRASH, ms(0));
    waiting.on(CRASH, ms(950));
    assert_eq!(waiting.phase(), Phase::Waiting { until: ms(1050) });
    let mut ending = armed(1000);
    ending.on(Event::AgentEnded(End::Exited(0)), ms(0));
    for mut state in [armed(1000), waiting, ending] {
        assert!(state.next_tick() <= Some(ms(1000)));
        assert_ne!(state.on(Event::Tick, ms(999)), fence);
        assert_eq!(state.on(Event::Tick, ms(1000)), fence);
    }
}

#[test]
fn the_last_record_counts_whether_later_or_earlier_or_disarmed() {
    let mut state = armed(1000);
    state.on(Event::Message(Message::Deadline(lease(3000))), ms(0));
    assert_eq!(state.on(Event::Tick, ms(2000)), []);
    state.on(Event::Message(Message::Deadline(lease(2500))), ms(2000));
    assert_eq!(state.next_tick(), Some(ms(2500)));
    state.on(Event::Message(Message::Disarm), ms(2400));
    assert_eq!(state.next_tick(), None);
    assert_eq!(state.on(Event::Tick, ms(9999)), []);
}

#[test]
fn a_crashed_agent_gets_the_lease_again_and_not_a_moment_more() {
    let mut state = armed(1000);
    assert_eq!(state.on(CRASH, ms(500)), [Action::Start(Some(lease(1000)))]);
    assert_eq!(state.next_tick(), Some(ms(1000)));
    assert_eq!(running().on(PANIC, ms(0)), [Action::Start(None)]);
}

#[test]
fn only_the_documented_exit_codes_end_init() {
    for code in 0..=255 {
        let mut state = running();
        let actions = state.on(Event::AgentEnded(End::Exited(code)), ms(0));
        if let Some(exit) = Exit::deliberate(code) {
            assert_eq!(actions, [Action::SignalLeftovers(Signal::SIGTERM)], "code {code}");
            let finish = state.on(Event::NoChildren, ms(1));
            assert_eq!(finish, [Action::Finish(exit)], "code {code}");
        } else {
            assert_eq!(actions, [Action::Start(None)], "code {code}");
        }
    }
}

#[test]
fn restarts_pause_longer_each_time_and_end_with_the_budget() {
    let mut state = running();
    assert_eq!(state.on(CRASH, ms(0)), [Action::Start(None)]);
    let mut now = 0;
    for pause in [100, 200, 400, 800] {
        assert_eq!(state.on(CRASH, ms(now)), []);
        assert_eq!(state.on(Event::NoChildren, ms(now)), []);
        assert_eq!(state.on(Event::Tick, ms(now + pause - 1)), []);
        assert_eq!(state.on(Event::Tick, ms(now + pause)), [Action::Start(None)]);
        now += pause;
    }
    let spent = Action::KillAndFinish(Exit::Internal, "restart budget of the agent spent");
    assert_eq!(state.on(CRASH, ms(now)), [spent]);
}

#[test]
fn an_agent_that_crashes_while_stopping_is_not_started_again() {
    let mut by_message = running();
    by_message.on(Event::Message(Message::Stopping), ms(0));
    let mut by_signal = running();
    by_signal.on(TERM, ms(0));
    for mut state in [by_message, by_signal] {
        assert_eq!(state.on(CRASH, ms(1)), [Action::SignalLeftovers(Signal::SIGTERM)]);
        assert_eq!(state.on(Event::NoChildren, ms(2)), [Action::Finish(Exit::Dirty)]);
    }
}

#[test]
fn what_a_leaving_agent_leaves_is_not_stopped_unless_something_is_armed() {
    let mut state = running();
    state.on(Event::Message(Message::Leaving), ms(0));
    let ended = Event::AgentEnded(End::Exited(Exit::Ok.code().into()));
    assert_eq!(state.on(ended, ms(1)), [Action::Finish(Exit::Ok)]);
    let mut fenced = armed(60_000);
    fenced.on(Event::Message(Message::Leaving), ms(0));
    assert_eq!(
        fenced.on(ended, ms(1)),
        [Action::SignalLeftovers(Signal::SIGTERM)]
    );
    let mut crashed = running();
    crashed.on(Event::Message(Message::Leaving), ms(0));
    assert_eq!(
        crashed.on(CRASH, ms(1)),
        [Action::SignalLeftovers(Signal::SIGTERM)]
    );
}

#[test]
fn dying_of_the_forwarded_signal_is_a_clean_stop_only_when_nothing_is_armed() {
    for (mut state, expected) in [(running(), Exit::Ok), (armed(60_000), Exit::Dirty)] {
        state.on(TERM, ms(0));
        state.on(Event::AgentEnded(End::Signaled(Signal::SIGTERM as i32)), ms(1));
        assert_eq!(state.on(Event::NoChildren, ms(2)), [Action::Finish(expected)]);
    }
}

#[test]
fn a_stop_during_the_pause_before_a_restart_ends_it() {
    let mut state = running();
    state.on(CRASH, ms(0));
    state.on(CRASH, ms(0));
    assert_eq!(state.on(TERM, ms(1)), [Action::SignalLeftovers(Signal::SIGTERM)]);
    assert_eq!(state.on(Event::NoChildren, ms(2)), [Action::Finish(Exit::Dirty)]);
}

#[test]
fn what_the_agent_left_behind_is_asked_twice_and_then_killed() {
    let mut state = running();
    let ended = state.on(Event::AgentEnded(End::Exited(0)), ms(0));
    assert_eq!(ended, [Action::SignalLeftovers(Signal::SIGTERM)]);
    assert_eq!(state.next_tick(), Some(ms(500)));
    assert_eq!(
        state.on(Event::Tick, ms(500)),
        [Action::SignalLeftovers(Signal::SIGINT)]
    );
    assert_eq!(state.next_tick(), Some(ms(8000)));
    assert_eq!(state.on(Event::Tick, ms(7999)), []);
    let why = "processes left behind did not stop in time";
    assert_eq!(
        state.on(Event::Tick, ms(8000)),
        [Action::KillAndFinish(Exit::Ok, why)]
    );
}

#[test]
fn a_stop_hurries_what_is_left_too() {
    let mut state = running();
    state.on(INT, ms(0));
    let ended = state.on(Event::AgentEnded(End::Exited(0)), ms(1));
    let both = [Signal::SIGTERM, Signal::SIGINT].map(Action::SignalLeftovers);
    assert_eq!(ended, both);
    assert_eq!(state.on(TERM, ms(2)), [Action::SignalLeftovers(Signal::SIGQUIT)]);
    let why = "not stopped in time after SIGQUIT";
    assert_eq!(
        state.on(Event::Tick, ms(5002)),
        [Action::KillAndFinish(Exit::Ok, why)]
    );

    let mut unasked = running();
    unasked.on(Event::AgentEnded(End::Exited(65)), ms(0));
    assert_eq!(unasked.on(TERM, ms(1)), [Action::SignalLeftovers(Signal::SIGINT)]);
}

#[test]
fn an_agent_whose_status_was_lost_counts_as_crashed() {
    assert_eq!(
        running().on(Event::AgentEnded(End::Lost), ms(0)),
        [Action::Start(None)]
    );
}

#[test]
fn having_no_children_matters_only_at_the_end() {
    let mut state = running();
    assert_eq!(state.on(Event::NoChildren, ms(0)), []);
    assert_eq!(state.phase(), Phase::Running);
}
