//! A program that reads the file through a server, on demand. What it understands is in `tests/src/bench/orders.rs`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Cache, Measured, Wait, Work};

/// How long a server may take until one can connect.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// How often to look whether it is there.
const LOOK: Duration = Duration::from_millis(20);

/// A program at work.
pub struct Side {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The server that it reads through, if that is not its own matter.
    _server: Option<Server>,
}

impl Side {
    /// Ours: a guest on the software partition. The programs are in `programs`.
    pub fn ours(programs: &Path, disk: &Path, cache: Cache, wait: Wait) -> Result<Self> {
        let mut command = Command::new(programs.join("bench-storage"));
        command.arg("--path").arg(disk);
        if cache == Cache::Direct {
            command.args(["--options", ",cache=none"]);
        }
        Self::start(command, wait, None)
    }

    /// QEMU's `vhost-user-blk` export, driven by a virtio driver.
    pub fn qemu(programs: &Path, disk: &Path, cache: Cache, aio: &str, wait: Wait) -> Result<Self> {
        Self::driver(programs, wait, Server::qemu(disk, cache, aio)?)
    }

    /// Our `vsp-storage` as such a server, driven in the same way.
    pub fn vhost_user(programs: &Path, disk: &Path, cache: Cache, wait: Wait) -> Result<Self> {
        Self::driver(programs, wait, Server::ours(programs, disk, cache)?)
    }

    fn driver(programs: &Path, wait: Wait, server: Server) -> Result<Self> {
        let mut command = Command::new(programs.join("bulkhead-peer"));
        command.arg("--socket").arg(&server.socket);
        Self::start(command, wait, Some(server))
    }

    fn start(mut command: Command, wait: Wait, server: Option<Server>) -> Result<Self> {
        command.args(["--wait", wait.word()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut side = Self { child, input, output, _server: server };
        let hello = side.line().with_context(|| format!("{name} does not start"))?;
        ensure!(hello == "ready", "{name} begins with {hello:?}");
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "it has ended");
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, order: &str) -> Result<String> {
        writeln!(self.input.as_mut().context("no input")?, "{order}")?;
        self.line().with_context(|| format!("asked for {order:?}"))
    }

    /// Reads for `time`.
    pub fn measure(&mut self, work: &Work, time: Duration) -> Result<Measured> {
        parse(&self.ask(&work.order(time))?)
    }

    /// KiB that the server has for itself.
    pub fn memory(&mut self) -> Result<f64> {
        let answer = self.ask("memory")?;
        answer.strip_prefix("memory ").and_then(|kib| kib.parse().ok()).with_context(|| answer.clone())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The end of its input is its end, and that of what it has started.
        self.input = None;
        let _ = self.child.wait();
    }
}

fn parse(answer: &str) -> Result<Measured> {
    let ["measured", reads, time, p50, _p99] = answer.split_whitespace().collect::<Vec<_>>()[..] else {
        bail!("what is {answer:?}?")
    };
    let number = |text: &str| text.parse::<f64>().with_context(|| answer.to_owned());
    Ok(Measured { per_second: number(reads)? * 1e9 / number(time)?, p50: number(p50)? / 1000.0 })
}

/// A vhost-user-blk server: `qemu-storage-daemon`, or ours.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn qemu(disk: &Path, cache: Cache, aio: &str) -> Result<Self> {
        let socket = Self::place("qemu");
        let direct = if cache == Cache::Direct { "on" } else { "off" };
        // The other side has the file open too: no locks, and nobody writes.
        let file = format!(
            "driver=file,node-name=file,filename={},read-only=on,locking=off,cache.direct={direct},aio={aio}",
            doubled_commas(disk)
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,iothread=io,addr.type=unix,addr.path={}",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command
            .args(["--object", "iothread,id=io", "--blockdev", &file])
            .args(["--blockdev", "driver=raw,node-name=disk,file=file,read-only=on", "--export", &export])
            .stdout(Stdio::null());
        Self::start(command, socket)
    }

    fn ours(programs: &Path, disk: &Path, cache: Cache) -> Result<Self> {
        let socket = Self::place("ours");
        let cache = if cache == Cache::Direct { ",cache=none" } else { "" };
        let mut command = Command::new(programs.join("vsp-storage"));
        command.args(["--device", "bench", "--log-level", "warn", "--vhost-user"]).arg(&socket);
        command.args(["--disk", &format!("path={},ro{cache}", doubled_commas(disk))]);
        Self::start(command, socket)
    }

    fn place(whose: &str) -> PathBuf {
        let socket = std::env::temp_dir().join(format!("bulkhead-bench-{whose}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        socket
    }

    fn start(mut command: Command, socket: PathBuf) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("starting {name}"))?;
        let mut server = Self { child, socket };
        let begin = Instant::now();
        while !server.socket.exists() {
            ensure!(server.child.try_wait()?.is_none(), "{name} has ended");
            ensure!(begin.elapsed() < STARTS_WITHIN, "{name} does not come up");
            std::thread::sleep(LOOK);
        }
        Ok(server)
    }
}

/// A path as a value on a command line whose commas separate.
fn doubled_commas(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let measured = parse("measured 1000000 2000000000 6200 9000").unwrap();
        assert_eq!(measured, Measured { per_second: 500_000.0, p50: 6.2 });
        assert!(parse("measured 1 2").is_err());
        assert!(parse("memory 12").is_err());
    }
}
