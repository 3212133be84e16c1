//! The console's process, started as the supervisor starts it: with its ends of the seats and listeners that outlive it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use sandbox::spawn::{Child, Command};

use super::Seats;
use super::viewer::{Options, Viewer};
use crate::steps::LIMIT;
use crate::{trace, vm};

/// Name of the VM, which viewers see.
pub const NAME: &str = "soft";
/// Its name as a process.
const PROCESS: &str = "console";

/// The console's process and what it is started with.
#[derive(Debug)]
pub struct Console {
    child: Child,
    seats: Seats,
    rfb: UnixListener,
    control: UnixListener,
    tcp: Option<TcpListener>,
    directory: PathBuf,
    args: Vec<String>,
    traced: bool,
}

/// How it is started.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// More arguments.
    pub args: Vec<String>,
    /// It listens on TCP too, and asks for this password there.
    pub password: Option<String>,
    /// Under strace.
    pub traced: bool,
    /// Its errors are expected.
    pub quiet: bool,
}

impl Console {
    /// Starts it; its sockets are in `directory`.
    pub fn start(directory: &Path, seats: &Seats, setup: &Setup) -> anyhow::Result<Self> {
        let listener = |name: &str| -> anyhow::Result<UnixListener> {
            let listener = UnixListener::bind(directory.join(name))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let (rfb, control) = (listener("rfb.sock")?, listener("control.sock")?);
        let level = std::env::var("BULKHEAD_TEST_LOG");
        let level = level.unwrap_or(if setup.quiet { "off" } else { "error" }.into());
        let mut args = vec!["--device".into(), PROCESS.into(), "--name".into(), NAME.into()];
        args.extend(["--log-level".into(), level]);
        args.extend(setup.args.iter().cloned());
        let tcp = match &setup.password {
            None => None,
            Some(password) => {
                let listener = TcpListener::bind("127.0.0.1:0")?;
                listener.set_nonblocking(true)?;
                let file = directory.join("password");
                std::fs::write(&file, format!("{password}\n"))?;
                args.extend(["--password-file".into(), file.display().to_string()]);
                Some(listener)
            }
        };
        let (directory, seats, traced) = (directory.to_owned(), seats.clone(), setup.traced);
        let child = spawn(&directory, &seats, (&rfb, &control), tcp.as_ref(), &args, traced)?;
        Ok(Self { child, seats, rfb, control, tcp, directory, args, traced })
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Kills it, if it lives, and starts another one.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let listeners = (&self.rfb, &self.control);
        self.child =
            spawn(&self.directory, &self.seats, listeners, self.tcp.as_ref(), &self.args, self.traced)?;
        Ok(())
    }

    /// Where viewers connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("rfb.sock")
    }

    /// The port where viewers connect who have a password.
    pub fn port(&self) -> anyhow::Result<u16> {
        Ok(self.tcp.as_ref().context("it does not listen on TCP")?.local_addr()?.port())
    }

    /// A viewer. It takes until the process is there, if it has just been started.
    pub fn viewer(&self, options: &Options<'_>) -> anyhow::Result<Viewer> {
        Viewer::connect(&self.socket(), options)
    }

    /// Asks it for something; the answer, and the bytes that follow it if it is a picture.
    pub fn ask(&self, request: &str) -> anyhow::Result<(serde_json::Value, Vec<u8>)> {
        let mut stream = UnixStream::connect(self.directory.join("control.sock"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let answer: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("{request} is answered with {line:?}"))?;
        let len = answer["png"].as_u64().unwrap_or(0) as usize;
        ensure!(len <= 64 << 20, "a picture of {len} bytes");
        let mut bytes = vec![0; len];
        reader.read_exact(&mut bytes)?;
        Ok((answer, bytes))
    }

    /// What it knows of viewers and devices.
    pub fn state(&self) -> anyhow::Result<serde_json::Value> {
        Ok(self.ask(r#"{"state":{}}"#)?.0["state"].clone())
    }

    /// Waits until its state is as it should be.
    pub fn wait(
        &self,
        what: &str,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> anyhow::Result<serde_json::Value> {
        let until = std::time::Instant::now() + LIMIT;
        loop {
            let state = self.state()?;
            if is(&state) {
                return Ok(state);
            }
            ensure!(std::time::Instant::now() < until, "the console is not {what}: {state}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the process has done so far, if it is traced.
    pub fn trace(&self) -> anyhow::Result<String> {
        let text = std::fs::read(trace::log(&self.directory, PROCESS))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn spawn(
    directory: &Path,
    seats: &Seats,
    (rfb, control): (&UnixListener, &UnixListener),
    tcp: Option<&TcpListener>,
    args: &[String],
    traced: bool,
) -> anyhow::Result<Child> {
    let program = vm::program("bulkhead-console")?;
    let command = match traced {
        false => Command::new(program),
        true => trace::command(&program, &trace::log(directory, PROCESS))?,
    };
    let mut given: Vec<(&str, BorrowedFd<'_>)> = vec![
        ("--video-fd", seats.video.console.as_fd()),
        ("--keyboard-fd", seats.keyboard.console.as_fd()),
        ("--mouse-fd", seats.mouse.console.as_fd()),
        ("--rfb-fd", rfb.as_fd()),
        ("--control-fd", control.as_fd()),
    ];
    if let Some(listener) = tcp {
        given.push(("--rfb-fd", listener.as_fd()));
    }
    let command = (3..).zip(given).fold(command, |command, (number, (name, fd))| {
        command.args([name.to_owned(), i32::to_string(&number)]).fd(fd, number)
    });
    Ok(command.args(args).spawn()?)
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
