//! What `cargo xtask chaos` and `cargo xtask bench continuity` start.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use bulkhead_tests::campaign::{
    cost,
    figures::{self, Measured},
    kills::{Campaign, Outcome},
    swaps::Swaps,
    victim::Kind,
};
use bulkhead_tests::load::Shape;
use clap::{Parser, Subcommand};

/// Lines of the processes' log that are shown after a failure.
const LOG_LINES: usize = 60;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kills vsp-storage at random moments under a checked load.
    Storage {
        /// How many times
        #[arg(long, default_value_t = 1000)]
        kills: u64,
        /// Where chance begins [default: the time]
        #[arg(long)]
        seed: Option<u64>,
        /// With a warm spare
        #[arg(long)]
        spare: bool,
        /// Ways to kill
        #[arg(long, value_delimiter = ',', default_value = "kill,stop,segv,sys")]
        kinds: Vec<Kind>,
        #[command(flatten)]
        load: Weight,
    },
    /// Swaps vsp-storage for another build and back under a checked load.
    Swap {
        /// How many times
        #[arg(long, default_value_t = 100)]
        swaps: u64,
        /// Where chance begins [default: the time]
        #[arg(long)]
        seed: Option<u64>,
        /// The other build [default: the same one]
        #[arg(long)]
        other: Option<PathBuf>,
        #[command(flatten)]
        load: Weight,
    },
    /// Measures; prints lines `figure NAME VALUE`, times in milliseconds.
    Figures {
        /// Kills and swaps of each kind, in hundreds; and rounds of reads
        #[arg(long, default_value_t = 5)]
        rounds: u32,
        #[command(flatten)]
        load: Weight,
    },
}

/// How heavy the load is.
#[derive(clap::Args)]
struct Weight {
    /// Channels of the controller
    #[arg(long, default_value_t = Shape::FULL.queues)]
    queues: usize,
    /// Requests under way in each
    #[arg(long, default_value_t = Shape::FULL.depth)]
    depth: usize,
    /// Longest request, in blocks of 512 bytes
    #[arg(long, default_value_t = Shape::LONGEST, value_parser = clap::value_parser!(u32).range(8..=i64::from(Shape::LONGEST)))]
    longest: u32,
}

impl Weight {
    fn shape(&self) -> Shape {
        Shape { queues: self.queues, depth: self.depth, longest: self.longest }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().command {
        Command::Storage { kills, seed, spare, kinds, load } => {
            let seed = seed.unwrap_or_else(now);
            eprintln!("seed {seed}");
            let outcome = Campaign { kills, seed, spare, kinds, shape: load.shape() }.run()?;
            for (kind, latencies) in outcome.latencies.iter().filter(|(kind, _)| **kind != Kind::Kill) {
                println!("{kind}: kills={} {latencies}", latencies.count());
            }
            println!("of that until the process stood still: {}", outcome.deaths);
            println!("{}", outcome.line());
            Ok(verdict(&outcome, seed))
        }
        Command::Swap { swaps, seed, other, load } => {
            let seed = seed.unwrap_or_else(now);
            let outcome = Swaps { swaps, seed, other, shape: load.shape(), in_memory: false }.run()?;
            println!("{}", outcome.line().replacen("kills=", "swaps=", 1));
            Ok(verdict(&outcome, seed))
        }
        Command::Figures { rounds, load } => {
            for round in cost::measure(rounds * 4)? {
                println!("figure read_with_ledger {}", round.with / 1e6);
                println!("figure read_without_ledger {}", round.without / 1e6);
            }
            let times = u64::from(rounds) * 100;
            let shape = load.shape();
            print("cold", &figures::kills(times, false, shape)?);
            print("spare", &figures::kills(times, true, shape)?);
            let (swaps, calm) = figures::swaps(times, shape)?;
            print("swap", &swaps);
            print("calm", &calm);
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn print(name: &str, measured: &Measured) {
    let Measured { undisturbed, disturbed } = measured;
    for (suffix, permille) in [("p50", 500), ("p99", 990), ("max", 1000)] {
        println!("figure {name}_{suffix} {}", undisturbed.permille(permille).as_secs_f64() * 1000.0);
    }
    println!("figure {name}_count {}", undisturbed.count());
    println!("figure {name}_disturbed {}", disturbed.count());
    println!("figure {name}_disturbed_max {}", disturbed.permille(1000).as_secs_f64() * 1000.0);
}

fn verdict(outcome: &Outcome, seed: u64) -> ExitCode {
    if outcome.is_clean() {
        return ExitCode::SUCCESS;
    }
    outcome.failure.iter().for_each(|failure| eprintln!("{failure}"));
    outcome.tally.complaints.iter().for_each(|complaint| eprintln!("{complaint}"));
    let lines: Vec<&str> = outcome.log.lines().collect();
    eprintln!("the last words of the processes (seed {seed}):");
    lines[lines.len().saturating_sub(LOG_LINES)..].iter().for_each(|line| eprintln!("{line}"));
    ExitCode::FAILURE
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_nanos() as u64)
}
