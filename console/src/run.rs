//! The life of the process, from the command line to the end.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use vsp::notify::Notifier;

use crate::cli::Args;
use crate::compartment::Door;
use crate::console::{Console, Setting};
use crate::given::Given;
use crate::listener::Listener;
use crate::web::Web;

/// Runs a console: takes what it was given, closes the door, serves until it is ended.
pub fn run(args: &Args) -> ExitCode {
    logs::init(args.common.log_format, args.common.log_level.0, &args.common.device);
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut notifier = Notifier::new(&args.common)?;
    let mut keep: Vec<_> = notifier.descriptor().into_iter().collect();
    notifier.descriptor().into_iter().for_each(sandbox::crash::notify);
    sandbox::crash::speak_with(logs::last_words);
    if args.common.policy_test.is_some() {
        return close(args, &keep);
    }
    let mut console = open(args)?;
    keep.extend(console.descriptors());
    close(args, &keep)?;
    notifier.status(true, "serving");
    loop {
        let limit = notifier.alive();
        console.turn(limit)?;
    }
}

fn open(args: &Args) -> Result<Console, Box<dyn Error>> {
    let given = Given::take(&args.given)?;
    let control = given.control.map(UnixListener::from);
    if let Some(control) = &control {
        control.set_nonblocking(true)?;
    }
    let web =
        given.web.map(|socket| Web::open(socket, given.secret, given.tls.clone(), &args.web)).transpose()?;
    let setting = Setting {
        name: args.name.clone(),
        video: seat::Seat::from_fd(given.video)?,
        keyboard: seat::Seat::from_fd(given.keyboard)?,
        mouse: seat::Seat::from_fd(given.mouse)?,
        listeners: given.rfb.into_iter().map(Listener::new).collect::<Result<_, _>>()?,
        control,
        web,
        password: given.password,
        tls: given.tls,
    };
    Ok(Console::new(setting)?)
}

fn close(args: &Args, keep: &[i32]) -> Result<(), Box<dyn Error>> {
    Ok(Door::of(&args.common).close(keep)?)
}
