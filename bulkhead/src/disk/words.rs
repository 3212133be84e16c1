//! Disks in the arguments of a storage process: `--disk lun=N,path=FILE[,...]`. Pure.
//!
//! Of a disk's options only these two are read here; a comma in a value is written twice.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::{LINK, link_word};

/// Before each disk.
pub const OPTION: &str = "--disk";
/// Highest LUN that a guest looks for (`vsp-storage` says why).
const MAX_LUN: u8 = 254;

/// Another disk for a device, or one less; or the state of a NIC's cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// This one, as `--disk` takes it; with `lun=`.
    Add {
        /// The word.
        disk: String,
    },
    /// This one no more. Not before the process that serves has let go of it: one that dies over it must be followed by one that knows
    /// of the disk, waits for what is still on its way to it, and does it again.
    Remove {
        /// Its number.
        lun: u8,
    },
    /// Exactly this one no more, which nobody has come to serve. Nobody is told.
    TakeBack {
        /// The word.
        disk: String,
    },
    /// The cable of a NIC is plugged in from now on, or not.
    Link {
        /// It is.
        up: bool,
    },
}

/// The disks in `args`, each as its word.
pub fn list(args: &[OsString]) -> Vec<String> {
    let pairs = args.iter().zip(args.iter().skip(1));
    pairs
        .filter(|(option, _)| *option == OPTION)
        .map(|(_, word)| word.to_string_lossy().into_owned())
        .collect()
}

/// What a disk's word says of an option.
pub fn value(word: &str, name: &str) -> Option<String> {
    let is_it = |option: &String| option.split_once('=').is_some_and(|(found, _)| found == name);
    let option = split(word).into_iter().find(is_it)?;
    option.split_once('=').map(|(_, value)| value.to_owned())
}

/// A disk's number.
pub fn lun(word: &str) -> Option<u8> {
    value(word, "lun")?.parse().ok()
}

/// The arguments after a change; `None` if they say so already. An error is a sentence.
pub fn changed(args: &[OsString], change: &Change) -> Result<Option<Vec<OsString>>, String> {
    let words = list(args);
    match change {
        Change::Add { disk } => {
            let number = lun(disk).ok_or("the disk has no LUN")?;
            let path = value(disk, "path").ok_or("the disk has no path")?;
            for word in &words {
                if word == disk {
                    return Ok(None);
                }
                if lun(word) == Some(number) {
                    let path = value(word, "path").unwrap_or_default();
                    return Err(format!("LUN {number} is taken by {path}: give another lun=, or none"));
                }
                if value(word, "path").as_ref() == Some(&path) {
                    let lun = lun(word).unwrap_or_default();
                    return Err(format!("{path} is LUN {lun} of this device already"));
                }
            }
            let added = [OsString::from(OPTION), OsString::from(disk)];
            Ok(Some(args.iter().cloned().chain(added).collect()))
        }
        Change::Remove { lun: number } => Ok(without(args, |word| lun(word) == Some(*number))),
        Change::TakeBack { disk } => Ok(without(args, |word| word == disk)),
        Change::Link { up } => {
            let place = args.iter().position(|option| option == LINK).map(|place| place + 1);
            let mut changed = args.to_vec();
            let word =
                place.and_then(|place| changed.get_mut(place)).ok_or("it is no NIC, and has no link")?;
            let wanted = OsString::from(link_word(*up));
            Ok((std::mem::replace(word, wanted.clone()) != wanted).then_some(changed))
        }
    }
}

/// The arguments without the first disk of which that is true; `None` if there is none.
fn without(args: &[OsString], is_meant: impl Fn(&str) -> bool) -> Option<Vec<OsString>> {
    let is_it = |place: &usize| {
        let word = args.get(place + 1).and_then(|word| word.to_str());
        args[*place] == OPTION && word.is_some_and(&is_meant)
    };
    (0..args.len()).find(is_it).map(|place| {
        let mut left = args.to_vec();
        left.drain(place..place + 2);
        left
    })
}

/// The word for what somebody has typed: its path made absolute, its LUN the lowest free one unless it has one.
pub fn complete(typed: &str, taken: &[String]) -> Result<String, String> {
    let mut options = split(typed);
    let Some(path) = value(typed, "path").filter(|path| !path.is_empty()) else {
        return Err("no file is named: write path=FILE".into());
    };
    let path = std::path::absolute(Path::new(&path)).map_err(|error| format!("{path}: {error}"))?;
    let Some(path) = path.to_str() else { return Err(format!("{} is not UTF-8: rename it", path.display())) };
    let number = match value(typed, "lun") {
        Some(text) => text
            .parse()
            .ok()
            .filter(|lun| *lun <= MAX_LUN)
            .ok_or(format!("`{text}` is no LUN: use 0 to {MAX_LUN}"))?,
        None => (0..=MAX_LUN)
            .find(|number| !taken.iter().any(|word| lun(word) == Some(*number)))
            .ok_or("every LUN of this device is taken")?,
    };
    options.retain(|option| !option.starts_with("lun=") && !option.starts_with("path="));
    let first = [format!("lun={number}"), format!("path={path}")];
    let all = first.iter().chain(&options).map(|option| option.replace(',', ",,"));
    Ok(all.collect::<Vec<_>>().join(","))
}

/// The file of a disk.
pub fn path(word: &str) -> Option<PathBuf> {
    value(word, "path").map(PathBuf::from)
}

/// Whether a disk is only read.
pub fn is_read_only(word: &str) -> bool {
    split(word).iter().any(|option| option == "ro")
}

/// Splits at single commas; a double one is a comma.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let doubled = c == ',' && chars.next_if_eq(&',').is_some();
        match parts.last_mut() {
            Some(part) if c != ',' || doubled => part.push(c),
            _ => parts.push(String::new()),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Vec<OsString> {
        let disks = words.iter().flat_map(|word| [OPTION, word]);
        ["--device", "disk0"].into_iter().chain(disks).chain(["--uid", "7"]).map(OsString::from).collect()
    }

    fn add(disk: &str) -> Change {
        Change::Add { disk: disk.into() }
    }

    #[test]
    fn a_disk_is_added_once() {
        let before = args(&["lun=0,path=/a", "lun=5,path=/b,ro"]);
        let after = changed(&before, &add("lun=1,path=/c")).unwrap().unwrap();
        assert_eq!(list(&after), ["lun=0,path=/a", "lun=5,path=/b,ro", "lun=1,path=/c"]);
        assert_eq!(changed(&after, &add("lun=1,path=/c")), Ok(None));
        for (disk, why) in [
            ("lun=5,path=/c", "LUN 5 is taken by /b"),
            ("lun=6,path=/b", "/b is LUN 5"),
            ("path=/c", "no LUN"),
            ("lun=6", "no path"),
        ] {
            assert!(changed(&before, &add(disk)).unwrap_err().contains(why), "{disk}");
        }
    }

    #[test]
    fn a_disk_is_removed_once() {
        let before = args(&["lun=0,path=/a", "lun=15,path=/b"]);
        let after = changed(&before, &Change::Remove { lun: 15 }).unwrap().unwrap();
        assert_eq!(after, args(&["lun=0,path=/a"]));
        assert_eq!(changed(&after, &Change::Remove { lun: 15 }), Ok(None));
        assert_eq!(changed(&before, &Change::Remove { lun: 1 }), Ok(None));
        let take_back = |disk: &str| changed(&before, &Change::TakeBack { disk: disk.into() }).unwrap();
        assert_eq!(take_back("lun=15,path=/b"), Some(args(&["lun=0,path=/a"])));
        assert_eq!(take_back("lun=15,path=/c"), None, "that is somebody else's");
    }

    #[test]
    fn a_cable_is_plugged_in_and_out() {
        let nic = ["--device", "nic0", "--link", "up", "--uid", "7"].map(OsString::from);
        let down = changed(&nic, &Change::Link { up: false }).unwrap().unwrap();
        assert_eq!(down, ["--device", "nic0", "--link", "down", "--uid", "7"]);
        assert_eq!(changed(&down, &Change::Link { up: false }), Ok(None));
        assert!(changed(&args(&[]), &Change::Link { up: true }).unwrap_err().contains("no NIC"));
    }

    #[test]
    fn what_is_typed_gets_a_number_and_a_place() {
        let taken = ["lun=0,path=/a".to_owned(), "lun=2,path=/b".to_owned()];
        assert_eq!(complete("path=/x,,y.img,ro", &taken).unwrap(), "lun=1,path=/x,,y.img,ro");
        assert_eq!(complete("serial=A,lun=9,path=/x", &[]).unwrap(), "lun=9,path=/x,serial=A");
        let word = complete("path=x", &[]).unwrap();
        assert!(path(&word).unwrap().is_absolute());
        assert!(complete("/x", &[]).unwrap_err().contains("path=FILE"));
        assert!(complete("path=/x,lun=255", &[]).unwrap_err().contains("255"));
        assert!(is_read_only("lun=1,path=/x,ro") && !is_read_only("path=/ro"));
    }
}
