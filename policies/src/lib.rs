//! The seccomp policies of every process, as data.
//!
//! `seccomp/NAME.json` lists what the process NAME may still ask of the kernel once its compartment is
//! closed; `build.rs` compiles each file to BPF. This crate must never hold code that installs a filter
//! (that is `sandbox`), and a policy must never contain a rule without a reason.
//!
//! Conventions of a policy file, checked at build time:
//! * the default is `trap`: the call is not made, and SIGSYS ends the process, which says its name first (`sandbox::crash`);
//! * every rule has a `comment` that says why the process needs the call. One that begins with `rare:` says
//!   why a normal workload may never execute it; [`audit`] reports every *other* rule that a workload
//!   did not use;
//! * every number in a condition has a `comment` with its name, and `ioctl` is allowed by request only;
//! * a filter `NAME-refusals` beside it lists calls that are answered with an error instead of allowed (glibc
//!   tries `clone3`, whose flags a filter cannot see, and falls back to `clone`, whose flags it can).

#![forbid(unsafe_code)]

pub mod audit;

/// What a process may still ask of the kernel: a compiled seccomp filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name of the policy and of its file.
    pub name: &'static str,
    /// The allow-list: `struct sock_filter`s in memory order, 8 bytes each.
    pub program: &'static [u8],
    /// A second filter, to be installed before `program`, for calls answered with an error; may be empty.
    pub refusals: &'static [u8],
}

impl Policy {
    /// The policy called `name`, if there is one.
    pub fn named(name: &str) -> Option<Policy> {
        ALL.iter().copied().find(|policy| policy.name == name)
    }

    /// The rules as they stand in the file, refusals last. Only tests and the audit call this: the
    /// table is not linked into a binary that does not.
    pub fn rules(&self) -> &'static [Rule] {
        rules_of(self.name)
    }

    /// Names of the syscalls that the policy lets through (refused ones are not), sorted, each once.
    pub fn syscalls(&self) -> Vec<&'static str> {
        let rules = self.rules();
        let refused =
            |name: &str| rules.iter().any(|r| r.refused && r.conditions.is_empty() && r.syscall == name);
        let mut names: Vec<_> = rules.iter().map(|r| r.syscall).filter(|name| !refused(name)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The first rule that a call with these arguments meets, refusals first; `None`: the call ends the process.
    pub fn verdict(&self, number: u32, arguments: &[u64; 6]) -> Option<&'static Rule> {
        let rules = self.rules();
        let matching = |refused| rules.iter().find(|r| r.refused == refused && r.matches(number, arguments));
        matching(false).map(|allowed| matching(true).unwrap_or(allowed))
    }
}

/// One line of a policy: a syscall, perhaps with conditions on its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The syscall's name.
    pub syscall: &'static str,
    /// Its number on the target.
    pub number: u32,
    /// Why the process needs it.
    pub reason: &'static str,
    /// A normal workload may never execute it (the file says `rare:` and why).
    pub rare: bool,
    /// Answered with an error instead of allowed.
    pub refused: bool,
    /// All must hold.
    pub conditions: &'static [Condition],
}

impl Rule {
    /// Whether a call with this number and these arguments meets the rule.
    pub fn matches(&self, number: u32, arguments: &[u64; 6]) -> bool {
        self.number == number && self.conditions.iter().all(|c| c.holds(arguments))
    }
}

/// A condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// All 64 bits are compared; otherwise the low 32.
    pub wide: bool,
    /// How it is compared with `value`.
    pub test: Test,
    /// What it is compared with.
    pub value: u64,
    /// What the value is called.
    pub name: &'static str,
}

impl Condition {
    fn holds(&self, arguments: &[u64; 6]) -> bool {
        let Some(&given) = arguments.get(usize::from(self.argument)) else { return false };
        let given = if self.wide { given } else { given & 0xffff_ffff };
        match self.test {
            Test::Equal => given == self.value,
            Test::AtMost => given <= self.value,
            Test::Masked(mask) => given & mask == self.value & mask,
        }
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Equal to the value.
    Equal,
    /// Not above the value (unsigned).
    AtMost,
    /// Equal to the value in the bits of this mask.
    Masked(u64),
}

include!(concat!(env!("OUT_DIR"), "/policies.rs"));
