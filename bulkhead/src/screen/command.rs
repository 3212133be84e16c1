//! The command lines of `bulkhead console`, `screenshot`, `type` and `key`, and what they do.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::client::{Client, Request, State};
use super::page;
use crate::device::command::Place;
use crate::device::find;
use crate::runtime_dir::VNC_SOCKET;

/// What `bulkhead console` is, in a line.
pub const CONSOLE_ABOUT: &str =
    "Says how to get to the screen of a running VM: by a web page or a VNC viewer";

/// What it is.
pub const CONSOLE_LONG_ABOUT: &str = "\
Every VM with a section [screen] in its spec has a console, a process that shows its screen to people and has nothing else of the VM. It \
speaks VNC on a Unix socket in the VM's runtime directory, which is for root and for the user who runs the VM; on a TCP port if the spec \
says so (listen, password_file, tls); and by a web page.

--web prints the address of that page. It is good for one browser and for a minute; the browser stays let in for twelve hours, whether \
or not the console's process is replaced meanwhile. Whoever uses the address first is the one, so it does not belong in a command line, which \
everybody on the host can read: --open opens it in your browser by a file that only you can read. Until the first such address is asked for nobody can connect. The page is at a port \
of 127.0.0.1 unless the spec says otherwise (web); from another computer, forward that port: ssh -L PORT:127.0.0.1:PORT HOST.

Any number of people can look on at once, sixteen at most, and all of them can type.";

/// Below its options.
pub const CONSOLE_AFTER_HELP: &str = "\
Examples:
  bulkhead console debian                     Both ways
  bulkhead console debian --web --open        In your browser
  vncviewer \"$(bulkhead console debian --vnc)\"
  vncdo -s \"$(bulkhead console debian --vnc)\" type hello key enter";

/// What `bulkhead screenshot` is.
pub const SCREENSHOT_ABOUT: &str = "Saves the screen of a running VM as a PNG file";

/// What `bulkhead type` is, in a line.
pub const TYPE_ABOUT: &str = "Types a text on the keyboard of a running VM";

/// What it is.
pub const TYPE_LONG_ABOUT: &str = "\
Types a text on the keyboard of a running VM, as a person with a keyboard of the United States would; the guest is taken to have set that \
layout. Line feeds press Enter, tabs Tab. Returns when the last key has \
been handed to the keyboard; interrupt it, and the rest is not typed.";

/// What `bulkhead key` is, in a line.
pub const KEY_ABOUT: &str = "Presses keys on the keyboard of a running VM";

/// What it is.
pub const KEY_LONG_ABOUT: &str = "\
Presses keys on the keyboard of a running VM and releases them: those joined by hyphens together, such as ctrl-alt-del (sixteen at most), one after the \
other if there are several words. Returns when the last one has been handed to the keyboard.";

/// Below its options.
pub const KEY_AFTER_HELP: &str = "\
Examples:
  bulkhead key debian ctrl-alt-del
  bulkhead key debian up up enter";

/// A running VM.
#[derive(Debug, Args)]
pub struct Vm {
    /// The VM's name
    #[arg(value_name = "VM")]
    pub vm: String,

    /// Where to look.
    #[command(flatten)]
    pub place: Place,
}

impl Vm {
    fn client(&self) -> Result<Client, crate::device::Error> {
        Client::connect(&self.place.base(), &self.vm)
    }
}

/// `bulkhead console`.
#[derive(Debug, Args)]
pub struct Console {
    /// Of which VM.
    #[command(flatten)]
    pub vm: Vm,

    /// Prints the address of a web page and nothing else; good for one browser
    #[arg(long, conflicts_with = "vnc")]
    pub web: bool,

    /// Opens that page in your browser (by xdg-open) and prints nothing
    #[arg(long, requires = "web")]
    pub open: bool,

    /// Prints the path of the Unix socket for VNC viewers and nothing else
    #[arg(long)]
    pub vnc: bool,
}

/// `bulkhead screenshot`.
#[derive(Debug, Args)]
pub struct Screenshot {
    /// Of which VM.
    #[command(flatten)]
    pub vm: Vm,

    /// The file; - is standard output
    #[arg(value_name = "OUT.PNG")]
    pub out: PathBuf,
}

/// `bulkhead type`.
#[derive(Debug, Args)]
pub struct Type {
    /// On which VM.
    #[command(flatten)]
    pub vm: Vm,

    /// The text
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    pub text: String,

    /// Presses Enter behind it
    #[arg(long)]
    pub enter: bool,
}

/// `bulkhead key`.
#[derive(Debug, Args)]
pub struct Key {
    /// On which VM.
    #[command(flatten)]
    pub vm: Vm,

    /// Keys, joined by hyphens where they are pressed together
    #[arg(value_name = "KEYS", required = true)]
    pub keys: Vec<String>,
}

/// Does `bulkhead console`.
///
/// # Errors
/// One sentence with what to do about it; so do the others.
pub fn console(options: &Console) -> anyhow::Result<ExitCode> {
    let mut client = options.vm.client()?;
    let runtime = find(&options.vm.place.base(), &options.vm.vm)?.runtime();
    let vnc = runtime.join(VNC_SOCKET);
    match (options.web, options.vnc) {
        (true, _) if options.open => page::open(&client.url()?, &options.vm.vm, &runtime)?,
        (true, _) => println!("{}", client.url()?),
        (_, true) => println!("{}", vnc.display()),
        _ => print!("{}", summary(&options.vm.vm, &client.state()?, &vnc)),
    }
    Ok(ExitCode::SUCCESS)
}

fn summary(vm: &str, state: &State, vnc: &Path) -> String {
    let picture = match (state.width, state.height) {
        (0, _) | (_, 0) => "none yet: the guest has not set it up".to_owned(),
        (width, height) => format!("{width} x {height}"),
    };
    let listens = |does: bool| if does { "the guest listens" } else { "the guest does not listen" };
    format!(
        "screen    {picture}\nkeyboard  {}\nmouse     {}\nweb       bulkhead console {vm} --web --open\nvnc       vncviewer {}\n",
        listens(state.keyboard),
        listens(state.mouse),
        vnc.display()
    )
}

/// Does `bulkhead screenshot`.
pub fn screenshot(options: &Screenshot) -> anyhow::Result<ExitCode> {
    let to_stdout = options.out == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("a picture is nothing for a terminal: name a file, or redirect standard output");
    }
    let picture = options.vm.client()?.screenshot()?;
    if to_stdout {
        std::io::stdout().write_all(&picture).context("cannot write to standard output")?;
    } else {
        std::fs::write(&options.out, &picture)
            .with_context(|| format!("cannot write {}", options.out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Does `bulkhead type`.
pub fn type_text(options: &Type) -> anyhow::Result<ExitCode> {
    let mut text = options.text.clone();
    if options.enter {
        text.push('\n');
    }
    options.vm.client()?.press(&Request::Type(text))?;
    Ok(ExitCode::SUCCESS)
}

/// Does `bulkhead key`.
pub fn key(options: &Key) -> anyhow::Result<ExitCode> {
    let mut client = options.vm.client()?;
    for keys in &options.keys {
        client.press(&Request::Key(keys.clone()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_that_is_not_there_yet_is_said() {
        let vnc = Path::new("/run/bulkhead/a/vnc.sock");
        let text = summary("a", &State::default(), vnc);
        assert!(text.starts_with("screen    none yet"), "{text}");
        let text = summary("a", &State { width: 800, height: 600, keyboard: true, mouse: false }, vnc);
        assert!(
            text.starts_with(
                "screen    800 x 600\nkeyboard  the guest listens\nmouse     the guest does not"
            ),
            "{text}"
        );
        assert!(text.ends_with("vnc       vncviewer /run/bulkhead/a/vnc.sock\n"), "{text}");
    }
}
