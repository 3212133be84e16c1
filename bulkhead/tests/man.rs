//! The man pages under version control are those that the command line makes.
#![allow(clippy::unwrap_used)]

use std::path::Path;

#[test]
fn man_pages_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man");
    for (name, page) in bulkhead::man::pages().unwrap() {
        let committed = std::fs::read(directory.join(&name)).unwrap_or_default();
        assert!(
            committed == page,
            "docs/man/{name} is not current: run `cargo run -p bulkhead -- man docs/man`"
        );
    }
}
