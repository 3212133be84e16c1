//! The man pages of the daemons under version control are those that their command lines make.

use std::path::Path;

use anyhow::ensure;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

/// Set: the pages are written instead of compared.
const WRITE: &str = "BULKHEAD_WRITE_MAN";

const STORAGE: &str = "\
.SH EXAMPLES
A disk for a VM of QEMU or Cloud Hypervisor, past the host's page cache:
.PP
.RS 4
.nf
vsp\\-storage \\-\\-vhost\\-user disk.sock \\-\\-disk path=debian.img,cache=none
.fi
.RE
.PP
docs/with\\-qemu.md and docs/with\\-cloud\\-hypervisor.md have the other half. For a VM of Bulkhead's own,
.BR bulkhead (1)
starts it.
.SH \"SEE ALSO\"
.BR bulkhead (1),
.BR vsp\\-net (1)
";
const NET: &str = "\
.SH EXAMPLES
A NIC for a VM of QEMU or Cloud Hypervisor, on a TAP that is there already:
.PP
.RS 4
.nf
vsp\\-net \\-\\-vhost\\-user nic.sock \\-\\-tap tap0 \\-\\-mac 52:54:00:12:34:56
.fi
.RE
.PP
docs/with\\-qemu.md and docs/with\\-cloud\\-hypervisor.md have the other half. For a VM of Bulkhead's own,
.BR bulkhead (1)
starts it.
.SH \"SEE ALSO\"
.BR bulkhead (1),
.BR vsp\\-storage (1)
";

fn page(command: Command, more: &str) -> anyhow::Result<Vec<u8>> {
    let name = command.get_name().to_owned();
    let man = Man::new(command).title(name.to_uppercase()).manual("Bulkhead");
    let man = man.source(concat!("Bulkhead ", env!("CARGO_PKG_VERSION")));
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    out.extend_from_slice(more.as_bytes());
    Ok(out)
}

#[test]
fn the_daemons_man_pages_are_current() -> anyhow::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/man");
    let pages = [
        ("vsp-storage.1", page(vsp_storage::cli::Args::command(), STORAGE)?),
        ("vsp-net.1", page(vsp_net::cli::Args::command(), NET)?),
    ];
    for (name, page) in pages {
        let path = directory.join(name);
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(&path, &page)?;
        }
        let is_current = std::fs::read(&path).is_ok_and(|committed| committed == page);
        let how = format!("{WRITE}=1 cargo test -p bulkhead-tests --test man_daemons");
        ensure!(is_current, "docs/man/{name} is not current: run `{how}`");
    }
    Ok(())
}
