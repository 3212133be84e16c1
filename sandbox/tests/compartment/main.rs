//! Compartments seen from inside and from outside.
//!
//! This program is its own helper: `main` runs the tests, and with a first argument `inside` it becomes what
//! the tests look at. The tests run twice, as root and as an ordinary user, if the first is who we are.
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(unsafe_code, reason = "bare system calls and signals are what is tested")]

mod inside;
mod outside;
mod rules;

use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::process::{Command, ExitCode};

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("policies_keep_their_promised_size", rules::policies_keep_their_promised_size),
    ("a_vcpu_may_nothing_that_its_process_may_not", rules::a_vcpu_may_nothing_that_its_process_may_not),
    ("every_rule_lets_its_call_through", rules::every_rule_lets_its_call_through),
    ("every_other_call_kills", rules::every_other_call_kills),
    ("every_condition_counts", rules::every_condition_counts),
    ("a_filter_that_is_not_installed_is_an_error", rules::a_filter_that_is_not_installed_is_an_error),
    ("other_architectures_calls_kill", rules::other_architectures_calls_kill),
    ("a_compartment_looks_closed_from_outside", outside::a_compartment_looks_closed_from_outside),
    ("no_forbidden_act_is_survived", outside::no_forbidden_act_is_survived),
    ("no_forbidden_act_is_survived_by_a_vcpu", outside::no_forbidden_act_is_survived_by_a_vcpu),
    ("threads_start_narrow_themselves_and_end", outside::threads_start_narrow_themselves_and_end),
    ("main_returns", outside::main_returns),
    ("a_panic_is_told_and_has_its_own_exit_code", outside::a_panic_is_told_and_has_its_own_exit_code),
    ("a_fault_is_seen_as_one", outside::a_fault_is_seen_as_one),
    ("a_crash_is_told_before_the_process_dies_of_it", outside::a_crash_is_told_before_the_process_dies_of_it),
    ("a_forbidden_call_is_named_and_kills", outside::a_forbidden_call_is_named_and_kills),
    ("abort_is_told_apart_from_a_forbidden_call", outside::abort_is_told_apart_from_a_forbidden_call),
    (
        "last_words_reach_a_supervisor_that_listens_and_wait_for_none",
        outside::last_words_reach_a_supervisor_that_listens_and_wait_for_none,
    ),
    (
        "a_signal_from_outside_ends_the_first_process_of_a_namespace_too",
        outside::a_signal_from_outside_ends_the_first_process_of_a_namespace_too,
    ),
    ("a_compartment_dies_with_its_parent", outside::a_compartment_dies_with_its_parent),
    ("an_heir_holds_nothing_but_the_memory", outside::an_heir_holds_nothing_but_the_memory),
    ("a_stopped_heir_holds_nothing_up", outside::a_stopped_heir_holds_nothing_up),
    ("more_than_one_thread_is_an_error", outside::more_than_one_thread_is_an_error),
    ("foreign_ids_are_an_error_without_root", outside::foreign_ids_are_an_error_without_root),
    ("what_is_required_and_missing_is_an_error", outside::what_is_required_and_missing_is_an_error),
    ("spawn_hands_over_exactly_what_is_listed", outside::spawn_hands_over_exactly_what_is_listed),
    ("spawn_tells_what_failed", outside::spawn_tells_what_failed),
    ("peers_are_recognised", outside::peers_are_recognised),
    (
        "the_audit_sees_what_happens_in_a_pid_namespace",
        outside::the_audit_sees_what_happens_in_a_pid_namespace,
    ),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|arg| arg == "inside") {
        inside::main(&args[2..]);
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    if args.iter().any(|arg| arg == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let who = if outside::is_root() { "root" } else { "an ordinary user" };
    println!("\nrunning {} tests as {who}", TESTS.len());
    let mut failed = 0;
    for (name, test) in TESTS.iter().filter(|(name, _)| filter.is_none_or(|f| name.contains(f.as_str()))) {
        let ok = catch_unwind(test).is_ok();
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += u32::from(!ok);
    }
    let once = args.iter().any(|arg| arg == "--once");
    if outside::is_root() && !once && !again_as_ordinary_user(filter) {
        failed += 1;
    }
    println!("test result: {}. {failed} failed\n", if failed == 0 { "ok" } else { "FAILED" });
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Nobody in particular.
const ORDINARY: u32 = 65534;

fn again_as_ordinary_user(filter: Option<&String>) -> bool {
    // The build directory may be out of an ordinary user's reach.
    let place = std::env::temp_dir().join(format!("bulkhead-sandbox-{}", std::process::id()));
    std::fs::create_dir(&place).unwrap();
    let program = place.join("compartment");
    std::fs::copy("/proc/self/exe", &program).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&place, mode).unwrap();
    let mut command = Command::new(&program);
    command.args(filter).uid(ORDINARY).gid(ORDINARY).current_dir("/");
    let status = command.status().unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    status.success()
}
