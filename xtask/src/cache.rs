//! Things that are expensive to make and are kept, each in a directory named after what it was made from.
//!
//! The cache is `$BULKHEAD_CACHE`, or `bulkhead` in the user's cache directory so that fresh clones share it. An
//! entry is complete or absent: it is made under another name and renamed. Entries are read-only by convention. One that
//! was not used for some days is removed when its successor is made.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// How long an entry that nobody uses stays: long enough to go back and forth between two branches.
const UNUSED: Duration = Duration::from_secs(2 * 24 * 3600);

/// Where the cache is.
pub fn root() -> Result<PathBuf> {
    let path = if let Some(path) = std::env::var_os("BULKHEAD_CACHE") {
        PathBuf::from(path)
    } else if let Some(path) = std::env::var_os("XDG_CACHE_HOME") {
        PathBuf::from(path).join("bulkhead")
    } else if let Some(home) = std::env::var_os("HOME") {
        PathBuf::from(home).join(".cache/bulkhead")
    } else {
        std::env::current_dir()?.join("target/lab")
    };
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    path.canonicalize().context("finding the cache")
}

/// A key for everything in `parts`: the same parts in the same order give the same key, on every machine.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    // FNV-1a: nobody attacks this, and it needs no crate.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    format!("{hash:016x}")
}

/// The directory `NAME-KEY`, made by `make` (which gets an empty directory to fill) if it is not there yet. Two
/// processes that want the same entry make it once.
pub fn entry(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = root()?;
    let path = root.join(format!("{name}-{key}"));
    if !path.is_dir() {
        let lock = File::create(root.join(format!("{name}.lock")))?;
        lock.lock().context("locking the cache")?;
        if !path.is_dir() {
            let partial = root.join(format!("{name}.partial"));
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            fs::create_dir(&partial)?;
            make(&partial)?;
            fs::rename(&partial, &path)?;
            remove_unused(&root, name, &path)?;
        }
    }
    // Its time of change says when it was last used; not knowing that only costs space.
    let _ = File::open(&path).and_then(|directory| directory.set_modified(SystemTime::now()));
    Ok(path)
}

fn remove_unused(root: &Path, name: &str, but: &Path) -> Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let same_kind = file_name
            .to_str()
            .and_then(|file| file.strip_prefix(name)?.strip_prefix('-'))
            .is_some_and(|key| key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit()));
        let unused = || -> std::io::Result<bool> {
            Ok(entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > UNUSED))
        };
        if same_kind && entry.path() != but && unused().unwrap_or(false) {
            // What cannot be removed only costs space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn key_depends_on_where_one_part_ends() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]), key(["ab", "c"]));
    }
}
