//! `vsp-storage` as another revision has it, built in the target directory.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{build, sh};

/// What a revision has if its processes can hand over at all.
const WITNESS: &str = "ipc/src/ledger.rs";

/// Builds it and returns the program; `None` (and says why) if there is no such revision, or none that could hand over.
pub fn build(revision: Option<&str>) -> Result<Option<PathBuf>> {
    let revision = match revision {
        Some(revision) => revision.to_owned(),
        // What has not been committed yet is compared with what has.
        None if git(&["status", "--porcelain", "--untracked-files=no"])?
            .is_some_and(|text| !text.is_empty()) =>
        {
            "HEAD".to_owned()
        }
        None => "HEAD~1".to_owned(),
    };
    let Some(commit) = git(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")])? else {
        sh::say(&format!("SKIPPED: there is no revision {revision} here to swap with"));
        return Ok(None);
    };
    let commit = commit.trim();
    if git(&["cat-file", "-e", &format!("{commit}:{WITNESS}")])?.is_none() {
        sh::say(&format!("SKIPPED: {revision} has no ledger, so its processes cannot hand over"));
        return Ok(None);
    }
    let short = commit.get(..12).unwrap_or(commit);
    let directory = build::target_directory().join("chaos").join(short);
    if !directory.join("Cargo.toml").is_file() {
        extract(commit, &directory)?;
    }
    // One target directory for all revisions: most of it is dependencies, which do not change.
    let target = build::target_directory().join("chaos").join("target");
    sh::step(&format!("building vsp-storage of {revision} ({short})"), || {
        let mut cargo = build::cargo();
        cargo.current_dir(&directory).env("CARGO_TARGET_DIR", &target).env_remove("CARGO_MANIFEST_DIR");
        sh::run(cargo.args(["build", "--release", "--quiet", "--package", "vsp-storage"]))
    })?;
    // A name of its own, so that the next revision does not replace it under a campaign.
    let program = directory.join("vsp-storage.bin");
    std::fs::copy(target.join("release").join("vsp-storage"), &program).context("keeping the program")?;
    Ok(Some(program))
}

/// The files of `commit`, without any of git's own.
fn extract(commit: &str, directory: &PathBuf) -> Result<()> {
    std::fs::create_dir_all(directory)?;
    let mut archive = Command::new("git")
        .current_dir(build::workspace())
        .args(["archive", "--format=tar", commit])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting git")?;
    let files = archive.stdout.take().context("no output of git")?;
    let tar = Command::new("tar").arg("-x").arg("-C").arg(directory).stdin(files).status()?;
    ensure!(archive.wait()?.success() && tar.success(), "cannot extract {commit}");
    Ok(())
}

/// What git prints; `None` if it fails, which is an answer too.
fn git(arguments: &[&str]) -> Result<Option<String>> {
    let output = Command::new("git").current_dir(build::workspace()).args(arguments).output();
    let Ok(output) = output else { return Ok(None) };
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}
