//! Compiles `seccomp/*.json` to BPF and writes the table that `src/lib.rs` includes.
//!
//! A file that does not compile fails the build, and so does one that breaks a rule of the house:
//! default `trap`, a reason for every syscall, a name for every number.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde::Deserialize;

/// The part of seccompiler's JSON that it keeps to itself: we need it for the rule table.
#[derive(Deserialize)]
struct Filter {
    mismatch_action: serde_json::Value,
    match_action: serde_json::Value,
    filter: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    syscall: String,
    comment: Option<String>,
    #[serde(default)]
    args: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    index: u8,
    #[serde(rename = "type")]
    length: String,
    op: serde_json::Value,
    val: u64,
    comment: Option<String>,
}

/// A policy file holds the allow-list under its own name, and may hold a list of calls that are
/// answered with an error instead under that name with this suffix.
const REFUSALS: &str = "-refusals";

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=seccomp");
    println!("cargo::rerun-if-changed=build.rs");
    let arch: TargetArch = env::var("CARGO_CFG_TARGET_ARCH")?.as_str().try_into()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut files: Vec<PathBuf> =
        fs::read_dir("seccomp")?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "json"));
    files.sort();

    let mut compiler = Compiler { arch, out, table: String::new(), lengths: BTreeSet::new() };
    let mut constants = Vec::new();
    let mut arms = String::new();
    for file in &files {
        let name = file.file_stem().and_then(|s| s.to_str()).ok_or("a policy file needs a name")?;
        let constant = constant_name(name);
        compiler.add(file, name, &constant).map_err(|e| format!("{}: {e}", file.display()))?;
        writeln!(arms, "        {name:?} => {constant}_RULES,")?;
        constants.push(constant);
    }
    let Compiler { out, mut table, .. } = compiler;
    writeln!(table, "/// Every policy there is.\npub const ALL: &[Policy] = &[{}];\n", constants.join(", "))?;
    writeln!(
        table,
        "fn rules_of(name: &str) -> &'static [Rule] {{\n    match name {{\n{arms}        _ => &[],\n    }}\n}}"
    )?;
    fs::write(out.join("policies.rs"), table)?;
    Ok(())
}

/// `vsp-storage` is `VSP_STORAGE`; the core's two lists have short names of their own.
fn constant_name(name: &str) -> String {
    match name {
        "core-vmm" => "CORE".into(),
        "core-vmm-vcpu" => "VCPU".into(),
        other => other.to_uppercase().replace('-', "_"),
    }
}

type Filters = BTreeMap<String, Filter>;

struct Compiler {
    arch: TargetArch,
    out: PathBuf,
    /// The Rust source that `src/lib.rs` includes.
    table: String,
    /// Instructions of each filter so far.
    lengths: BTreeSet<usize>,
}

impl Compiler {
    fn add(&mut self, file: &Path, name: &str, constant: &str) -> Result<(), Failure> {
        let text = fs::read_to_string(file)?;
        let filters: Filters = serde_json::from_str(&text)?;
        let refusals = format!("{name}{REFUSALS}");
        check_policy(&filters, name, &refusals)?;
        for (key, mut program) in compile_from_json(text.as_bytes(), self.arch)? {
            // The audit tells filters apart by length: repeat the last instruction, which is never reached again.
            while let Some(last) = program.last().filter(|_| !self.lengths.insert(program.len())) {
                program.push(last.clone());
            }
            fs::write(self.out.join(format!("{key}.bpf")), bytes(&program))?;
        }
        let bpf = |key: &str| match filters.contains_key(key) {
            true => format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{key}.bpf\"))"),
            false => "&[]".into(),
        };
        writeln!(
            self.table,
            "/// `seccomp/{name}.json`, compiled.\npub const {constant}: Policy = Policy {{ name: {name:?}, \
             program: {}, refusals: {} }};\n",
            bpf(name),
            bpf(&refusals)
        )?;
        writeln!(self.table, "const {constant}_RULES: &[Rule] = &[")?;
        for (key, refused) in [(name, false), (&refusals, true)] {
            for rule in filters.get(key).into_iter().flat_map(|filter| &filter.filter) {
                write_rule(&mut self.table, rule, refused, self.arch)?;
            }
        }
        writeln!(self.table, "];\n")?;
        Ok(())
    }
}

/// A file holds an allow-list and perhaps refusals, and each does what its name says.
fn check_policy(filters: &Filters, name: &str, refusals: &str) -> Result<(), Failure> {
    if let Some(other) = filters.keys().find(|key| *key != name && *key != refusals) {
        return Err(format!("holds {other:?}; only {name:?} and {refusals:?} belong here").into());
    }
    let allow = filters.get(name).ok_or_else(|| format!("holds no filter named {name:?}"))?;
    check(allow)?;
    if allow.mismatch_action != "trap" || allow.match_action != "allow" {
        return Err("an allow-list traps by default (SIGSYS) and allows what it lists".into());
    }
    let Some(refused) = filters.get(refusals) else { return Ok(()) };
    check(refused)?;
    if refused.mismatch_action != "allow" || refused.match_action.get("errno").is_none() {
        return Err("refusals answer with an errno and leave the rest to the allow-list".into());
    }
    match refused.filter.iter().find(|rule| !allow.filter.iter().any(|r| r.syscall == rule.syscall)) {
        // The stricter of two filters wins: a refusal of a call that is not listed would kill.
        Some(rule) => Err(format!("{} is refused but not in the allow-list", rule.syscall).into()),
        None => Ok(()),
    }
}

/// Calls that would let a process replace the handler of its own SIGSYS, or come back from it. (`rt_sigaction` with a condition
/// is for the core, which installs one handler by its number.)
const HANDLERS: &str = "rt_sigaction";

/// The rules of the house that seccompiler does not know.
fn check(filter: &Filter) -> Result<(), Failure> {
    let mut conditional: BTreeMap<&str, bool> = BTreeMap::new();
    for rule in &filter.filter {
        let syscall = rule.syscall.as_str();
        let reason = rule.comment.as_deref().unwrap_or_default();
        if reason.len() < 8 || reason == "rare:" {
            return Err(format!("{syscall}: say in \"comment\" why it is needed").into());
        }
        if let Some(condition) = rule.args.iter().find(|c| c.comment.is_none()) {
            return Err(
                format!("{syscall}: argument {} needs a comment naming the number", condition.index).into()
            );
        }
        if syscall == HANDLERS && !rule.args.iter().any(|c| c.index == 0) {
            return Err("a handler is installed for a named signal only, never for SIGSYS".into());
        }
        if syscall == "ioctl" && !rule.args.iter().any(|c| c.index == 1) {
            return Err("ioctl is allowed by request number only".into());
        }
        let has_arguments = !rule.args.is_empty();
        match conditional.insert(syscall, has_arguments) {
            None => {}
            // seccompiler would silently drop the unconditional rule.
            Some(earlier) if earlier && has_arguments => {}
            Some(_) => return Err(format!("{syscall}: listed twice, once without arguments").into()),
        }
    }
    Ok(())
}

fn write_rule(table: &mut String, rule: &Rule, refused: bool, arch: TargetArch) -> Result<(), Failure> {
    let comment = rule.comment.as_deref().unwrap_or_default();
    let (rare, reason) = match comment.strip_prefix("rare:") {
        Some(reason) => (true, reason.trim()),
        None => (false, comment),
    };
    write!(
        table,
        "    Rule {{ syscall: {:?}, number: {}, reason: {reason:?}, rare: {rare}, refused: {refused}, conditions: &[",
        rule.syscall,
        number(&rule.syscall, arch)?
    )?;
    for condition in &rule.args {
        write!(
            table,
            "Condition {{ argument: {}, wide: {}, test: {}, value: {}, name: {:?} }}, ",
            condition.index,
            condition.length == "qword",
            test(&condition.op)?,
            condition.val,
            condition.comment.as_deref().unwrap_or_default(),
        )?;
    }
    writeln!(table, "] }},")?;
    Ok(())
}

fn test(op: &serde_json::Value) -> Result<String, Failure> {
    if let Some(mask) = op.get("masked_eq").and_then(serde_json::Value::as_u64) {
        return Ok(format!("Test::Masked({mask})"));
    }
    match op.as_str() {
        Some("eq") => Ok("Test::Equal".into()),
        Some("le") => Ok("Test::AtMost".into()),
        _ => Err(format!("operator {op}: policies use eq, le and masked_eq only").into()),
    }
}

/// A syscall's number, read back from a filter of one rule (seccompiler's own table is private).
fn number(syscall: &str, arch: TargetArch) -> Result<u32, Failure> {
    let json = format!(
        r#"{{"one":{{"mismatch_action":"kill_process","match_action":"allow","filter":[{{"syscall":"{syscall}"}}]}}}}"#
    );
    let programs = compile_from_json(json.as_bytes(), arch)?;
    let program = programs.get("one").ok_or("no program")?;
    // A filter begins with: load arch, jump if it is ours, kill; load number; jump if equal to K.
    let load = program.iter().position(|i| i.code == 0x20 && i.k == 0).ok_or("no load of the number")?;
    Ok(program.get(load + 1).ok_or("no comparison")?.k)
}

/// `struct sock_filter`s in the target's byte order (all supported targets are little-endian).
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let mut out = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        out.extend(instruction.code.to_le_bytes());
        out.extend([instruction.jt, instruction.jf]);
        out.extend(instruction.k.to_le_bytes());
    }
    out
}
