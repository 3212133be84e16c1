//! Which rules a real workload used, and which it did not: the other half of "a rule that nothing uses
//! fails the build".
//!
//! As root, run the workload under `strace -f --pidns-translation -e raw='!seccomp' -o FILE` and give the file's
//! text to [`Usage::read`]. All arguments must be numbers, so that conditions can be compared, except for those of
//! `seccomp`, whose filter length tells the policies apart; threads of a process in a PID namespace must be
//! recognised as its own. Rules marked `rare:` in the policy file may stay unused.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ALL, Policy, Rule};

/// Bytes of one instruction of a filter.
const INSTRUCTION: usize = 8;

/// What a workload did after its filters were in place.
#[derive(Debug, Default)]
pub struct Usage {
    /// For each policy seen, the rules used (their places in [`Policy::rules`]).
    used: BTreeMap<&'static str, BTreeSet<usize>>,
    /// Calls that no rule of the policy allows, as strace printed them: what the process died of.
    denied: Vec<(&'static str, String)>,
}

impl Usage {
    /// Reads what strace wrote, adding to what was read before.
    pub fn read(&mut self, log: &str) {
        let names = syscall_names();
        let born = births(log);
        let mut policies: BTreeMap<u32, Vec<Policy>> = BTreeMap::new();
        // What was in force when a task was made, by the place of the call among all such calls.
        let mut inheritances: Vec<Vec<Policy>> = Vec::new();
        for (task, line) in lines(log) {
            let active = policies.entry(task).or_insert_with(|| {
                // A new task starts with the filters of the one that made it.
                born.get(&task).and_then(|place| inheritances.get(*place)).cloned().unwrap_or_default()
            });
            let (Line::Whole(call) | Line::Begun(call)) = line else { continue };
            if call.makes_task() {
                inheritances.push(active.clone());
            }
            self.count(active, &call, &names);
            if let Some(policy) = call.filter_len.and_then(by_length) {
                self.used.entry(policy.name).or_default();
                active.push(policy);
            }
        }
    }

    fn count(&mut self, active: &[Policy], call: &Call<'_>, names: &BTreeMap<&str, u32>) {
        for policy in active {
            let number = names.get(call.name).copied().unwrap_or(u32::MAX);
            let rules = policy.rules();
            // A refused call is used twice: the allow-list lets it by, the refusal answers it.
            let hits = rules.iter().enumerate().filter(|(_, rule)| rule.matches(number, &call.arguments));
            let used = self.used.entry(policy.name).or_default();
            used.extend(hits.map(|(place, _)| place));
            if policy.verdict(number, &call.arguments).is_none() {
                self.denied.push((policy.name, call.text.to_owned()));
            }
        }
    }

    /// Policies that were in force at some time.
    pub fn policies(&self) -> impl Iterator<Item = Policy> {
        self.used.keys().filter_map(|name| Policy::named(name))
    }

    /// Rules of `policy` that the workload did not use and that are not marked as rare.
    pub fn unused(&self, policy: &Policy) -> Vec<&'static Rule> {
        let used = self.used.get(policy.name);
        let is_used = |place: &usize| used.is_some_and(|used| used.contains(place));
        let rules = policy.rules().iter().enumerate();
        rules.filter(|(place, rule)| !rule.rare && !is_used(place)).map(|(_, rule)| rule).collect()
    }

    /// Rules marked as rare that the workload did use after all.
    pub fn rare_but_used(&self, policy: &Policy) -> Vec<&'static Rule> {
        let used = self.used.get(policy.name);
        let rules = policy.rules().iter().enumerate();
        rules
            .filter(|(place, rule)| rule.rare && used.is_some_and(|u| u.contains(place)))
            .map(|(_, r)| r)
            .collect()
    }

    /// Calls that were denied: the policy's name and strace's text.
    pub fn denied(&self) -> &[(&'static str, String)] {
        &self.denied
    }
}

/// The policy whose allow-list has this many instructions. The build sees to it that no two have the same.
fn by_length(instructions: usize) -> Option<Policy> {
    ALL.iter().copied().find(|policy| policy.program.len() == instructions * INSTRUCTION)
}

fn syscall_names() -> BTreeMap<&'static str, u32> {
    ALL.iter().flat_map(|policy| policy.rules()).map(|rule| (rule.syscall, rule.number)).collect()
}

/// Lines with the number of the task they are about.
fn lines(log: &str) -> impl Iterator<Item = (u32, Line<'_>)> {
    log.lines().filter_map(|line| {
        let (task, rest) = line.split_once(' ')?;
        Some((task.parse().ok()?, Line::parse(rest.trim_start())))
    })
}

/// By which call, counted in order, each task was made. A task may speak before that has returned, so this is looked up
/// beforehand.
///
/// What a maker in a PID namespace gets is its child's number in there, which strace does not always translate. Numbers
/// are given out in order: the tasks that nobody is known to have made are then the children of those calls, in order.
fn births(log: &str) -> BTreeMap<u32, usize> {
    let tasks: BTreeSet<u32> = lines(log).map(|(task, _)| task).collect();
    let mut born = BTreeMap::new();
    // In the order of the calls, whether the child is still to be found; the call's place is known before its result.
    let mut unknown: Vec<bool> = Vec::new();
    let mut making: BTreeMap<u32, usize> = BTreeMap::new();
    for (task, line) in lines(log) {
        let (place, result) = match line {
            Line::Begun(call) if call.makes_task() => {
                making.insert(task, unknown.len());
                unknown.push(false);
                continue;
            }
            Line::Whole(call) if call.makes_task() => {
                unknown.push(false);
                (unknown.len() - 1, call.result)
            }
            Line::Resumed(result) => match making.remove(&task) {
                Some(place) => (place, result),
                None => continue,
            },
            _ => continue,
        };
        match result.and_then(|child| u32::try_from(child).ok()) {
            Some(child) if tasks.contains(&child) => _ = born.insert(child, place),
            Some(_) => unknown[place] = true,
            // It failed.
            None => {}
        }
    }
    // The very first task was made by strace.
    let orphans = tasks.iter().skip(1).filter(|task| !born.contains_key(task)).copied();
    let calls = unknown.iter().enumerate().filter_map(|(place, unknown)| unknown.then_some(place));
    let matched: Vec<_> = orphans.zip(calls).collect();
    born.extend(matched);
    born
}

/// One line of strace's, without the task's number.
enum Line<'a> {
    Whole(Call<'a>),
    Begun(Call<'a>),
    Resumed(Option<i64>),
    Other,
}

struct Call<'a> {
    name: &'a str,
    arguments: [u64; 6],
    filter_len: Option<usize>,
    result: Option<i64>,
    text: &'a str,
}

impl Call<'_> {
    fn makes_task(&self) -> bool {
        matches!(self.name, "clone" | "clone3" | "fork" | "vfork")
    }
}

impl<'a> Line<'a> {
    fn parse(text: &'a str) -> Line<'a> {
        if let Some(resumed) = text.strip_prefix("<... ") {
            return Line::Resumed(resumed.rsplit_once(" = ").and_then(|(_, result)| number(result)));
        }
        let Some((name, rest)) = text.split_once('(') else { return Line::Other };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Line::Other;
        }
        let begun = rest.contains("<unfinished ...>");
        let (inside, result) = match rest.rsplit_once(" = ") {
            Some((inside, result)) if !begun => (inside, number(result)),
            _ => (rest, None),
        };
        let mut arguments = [0; 6];
        for (argument, text) in arguments.iter_mut().zip(inside.split([',', ')', '<'])) {
            *argument = number(text).unwrap_or(0).cast_unsigned();
        }
        let filter_len = inside
            .split_once("{len=")
            .and_then(|(_, rest)| rest.split([',', '}']).next())
            .and_then(|len| len.trim().parse().ok());
        let call = Call { name, arguments, filter_len, result, text };
        if begun { Line::Begun(call) } else { Line::Whole(call) }
    }
}

/// A number as strace prints it raw: `0x1f`, `31`, `-1 ENOENT (...)`; `?` is none. A process id from another
/// namespace has its number in ours behind it: `2 /* 4711 in strace's PID NS */`.
fn number(text: &str) -> Option<i64> {
    let ours = text.split_once("/* ").filter(|(_, ours)| ours.contains("in strace's PID NS"));
    let word = ours.map_or(text, |(_, ours)| ours).split_whitespace().next()?;
    if word == "SECCOMP_SET_MODE_FILTER" {
        return Some(1);
    }
    match word.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(u64::cast_signed),
        None => word.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CORE, VCPU, VSP_STORAGE};

    fn filter(policy: &Policy) -> String {
        let len = policy.program.len() / INSTRUCTION;
        format!("seccomp(SECCOMP_SET_MODE_FILTER, 0, {{len={len}, filter=0x5}}) = 0")
    }

    #[test]
    fn lengths_tell_policies_apart() {
        for policy in ALL {
            assert_eq!(by_length(policy.program.len() / INSTRUCTION), Some(*policy));
        }
    }

    #[test]
    fn only_what_happens_behind_the_door_counts() {
        let log = format!(
            "7 epoll_wait(0x3, 0x7f, 0x10, 0xffffffff) = 0x1\n7 {}\n7 write(0x2, 0x7f, 0x1) = 0x1\n",
            filter(&VSP_STORAGE)
        );
        let mut usage = Usage::default();
        usage.read(&log);
        let unused: Vec<_> = usage.unused(&VSP_STORAGE).iter().map(|rule| rule.syscall).collect();
        assert!(unused.contains(&"epoll_wait"));
        assert!(!unused.contains(&"write"));
        assert!(usage.denied().is_empty());
    }

    #[test]
    fn conditions_are_compared() {
        let log = format!(
            "7 {}\n7 fcntl(0x3, 0x40a) = 0xb\n7 mmap(0, 0x1000, 0x5, 0x22, 0xffffffff, 0) = ?\n",
            filter(&VSP_STORAGE)
        );
        let mut usage = Usage::default();
        usage.read(&log);
        let seals = |rule: &&Rule| rule.conditions.iter().any(|c| c.name == "F_GET_SEALS");
        assert!(!usage.unused(&VSP_STORAGE).iter().any(seals));
        assert_eq!(usage.denied().len(), 1, "{:?}", usage.denied());
        assert!(usage.denied()[0].1.starts_with("mmap("));
    }

    #[test]
    fn threads_inherit_and_stack() {
        inherit_and_stack("0x2 /* 9 in strace's PID NS */");
    }

    #[test]
    fn children_are_recognised_without_translation() {
        inherit_and_stack("0x2");
    }

    #[test]
    fn what_came_after_a_birth_is_not_inherited() {
        let log = format!(
            "7 clone(0x100, 0, 0, 0, 0, 0) = 0x9\n7 {}\n9 close_range(0, 0x5, 0) = 0\n",
            filter(&VSP_STORAGE)
        );
        let mut usage = Usage::default();
        usage.read(&log);
        assert!(usage.denied().is_empty(), "{:?}", usage.denied());
    }

    fn inherit_and_stack(child: &str) {
        let log = format!(
            "7 {}\n7 clone(0x3d0f00, 0, 0, 0, 0, 0 <unfinished ...>\n9 rseq(0x1)\n7 <... clone resumed>) = {child}\n\
             9 {}\n9 ioctl(0x5, 0xae80, 0) = 0\n9 ioctl(0x5, 0x4008ae89, 0) = 1\n9 ioctl(0x5, 0xc008ae88, 0) = 1\n7 futex(0x1, 0, 0) = 0\n",
            filter(&CORE),
            filter(&VCPU)
        );
        let mut usage = Usage::default();
        usage.read(&log);
        let unused = |policy: &Policy| usage.unused(policy).iter().map(|r| r.syscall).collect::<Vec<_>>();
        assert!(usage.denied().is_empty(), "{:?}", usage.denied());
        assert!(!unused(&VCPU).contains(&"ioctl"));
        assert!(unused(&VCPU).contains(&"futex"), "the main thread's calls are not the vCPU's");
        assert!(!unused(&CORE).contains(&"futex"));
        assert!(!unused(&CORE).contains(&"clone"));
        assert!(!unused(&CORE).contains(&"rseq"), "said before clone returned");
    }
}
