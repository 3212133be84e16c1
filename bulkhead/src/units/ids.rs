//! The user ids of VMs that systemd runs: like those of `bulkhead run`, from a range beside theirs, and kept for good, because
//! they are in files.

use std::fs;
use std::path::Path;

use super::CONFIG;
use crate::plan;

/// The file in a VM's configuration directory with the number of its block.
pub const FILE: &str = "id-block";

/// The first id of the range: right behind that of `bulkhead run`, whose blocks come and go.
const FIRST: u32 = plan::FIRST_ID + plan::ID_BLOCKS * plan::IDS_PER_VM;

/// The id of the process at `position` (0 is the core) in a VM's block.
pub fn id(block: u32, position: usize) -> u32 {
    // At most `MOST_DEVICES` positions: they fit in a block.
    FIRST + block * plan::IDS_PER_VM + u32::try_from(position).unwrap_or(0)
}

/// The name of the user with that id. The VM's name may be longer than a user's: numbers.
pub fn user(block: u32, position: usize) -> String {
    format!("bulkhead-{block}-{position}")
}

/// The block that the VM `name` has under `root`, or the first free one from the one that its name prefers; `None`: all are taken.
pub fn block(root: &Path, name: &str) -> Option<u32> {
    let configuration = root.join(CONFIG);
    let of = |vm: &Path| -> Option<u32> {
        let block = fs::read_to_string(vm.join(FILE)).ok()?.trim().parse().ok()?;
        (block < plan::ID_BLOCKS).then_some(block)
    };
    if let Some(own) = of(&configuration.join(name)) {
        return Some(own);
    }
    let others = fs::read_dir(&configuration).into_iter().flatten().flatten();
    let taken: Vec<u32> = others.filter_map(|entry| of(&entry.path())).collect();
    let preferred = plan::preferred_id_block(name);
    (0..plan::ID_BLOCKS).map(|n| (preferred + n) % plan::ID_BLOCKS).find(|block| !taken.contains(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_apart_from_those_of_bulkhead_run() {
        let last_of_run = plan::FIRST_ID + plan::ID_BLOCKS * plan::IDS_PER_VM - 1;
        assert!(id(0, 0) > last_of_run);
        assert_eq!(id(1, 0) - id(0, 255), 1);
        assert!(user(plan::ID_BLOCKS - 1, 255).len() <= 31, "the longest user name");
    }

    #[test]
    fn a_vm_keeps_its_block_and_shares_it_with_nobody() {
        let root = std::env::temp_dir().join(format!("bulkhead-ids-{}", std::process::id()));
        let keep = |vm: &str, block: u32| {
            let directory = root.join(CONFIG).join(vm);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(FILE), format!("{block}\n")).unwrap();
        };
        let preferred = plan::preferred_id_block("debian");
        assert_eq!(block(&root, "debian"), Some(preferred));
        keep("squatter", preferred);
        let next = (preferred + 1) % plan::ID_BLOCKS;
        assert_eq!(block(&root, "debian"), Some(next));
        keep("debian", next);
        fs::remove_dir_all(root.join(CONFIG).join("squatter")).unwrap();
        assert_eq!(block(&root, "debian"), Some(next), "it is in the passwd file by now");
        fs::remove_dir_all(&root).unwrap();
    }
}
