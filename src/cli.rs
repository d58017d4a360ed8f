//! The command line: exit code 0 for success, 1 for failure, 2 for incorrect usage; of `verify`, 1 for damage and 2 for
//! failure; 128 more than the number of a signal that has ended a command. Standard output has nothing but data.

mod append;
mod bench;
mod config;
mod cursors;
mod failure;
mod logs;
mod progress;
mod read;
mod repair;
mod serve;
mod settings;
mod signals;
mod size;
mod start;
mod stderr;
mod stdout;
mod target;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use failure::{CodedFailure, Failure, Usage};
use std::process::ExitCode;

/// A commit log: append records, read them by offset.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// `docs/commands.md` says the same.
const EXIT_CODES: &str = "Exit codes:
  0            it was done
  1            it has failed; of `verify`: there is damage
  2            arguments or settings that no log and no server would take; of `verify`: it could not look
  130, 143     SIGINT or SIGTERM has ended it, except `serve`, for which the first one is 0";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    Append(append::Append),
    Read(read::Read),
    Tail(read::Tail),
    Bench(Box<bench::Bench>),
    Logs(logs::Logs),
    Cursors(cursors::Cursors),
    Verify(verify::Verify),
    Repair(repair::Repair),
    /// Print a script that completes commands and flags in a shell
    #[command(after_help = "Examples:\n  \
        source <(millstream completions bash)\n  \
        millstream completions fish > ~/.config/fish/completions/millstream.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The result of a command: an exit code, or a one-line error that says what went wrong and what to do.
type Outcome = Result<ExitCode, Failure>;

/// Runs the command line.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") => {
            return fail(&usage_of(&error), true);
        }
        Err(error) if error.use_stderr() => error.exit(), // with 2
        // What was asked for: help, or the version.
        Err(text) => {
            let printed = stdout::write(|_| text.print());
            return printed
                .map_or_else(|error| fail(&CodedFailure::of(&*error), false), |()| ExitCode::SUCCESS);
        }
    };
    if let Err(error) = outlive_file_size_limit() {
        stderr::say(format_args!("millstream: a limit of file sizes would end this process: {error}"));
    }
    run(&cli).unwrap_or_else(|error| {
        let code = fail(
            &CodedFailure::of(&*error).with_advice_if_no_log(cli.command.without_log()),
            cli.command.prints_json(),
        );
        match error.downcast_ref::<signals::Interrupted>() {
            Some(interrupted) => signals::exit_code(interrupted.signal),
            None if matches!(cli.command, Command::Verify(_)) => verify::NOT_KNOWN.into(),
            None => code,
        }
    })
}

/// Says what has failed, in a line; returns the exit code.
fn fail(said: &CodedFailure, json: bool) -> ExitCode {
    stderr::say(format_args!("{}", said.line(json)));
    said.exit_code()
}

/// What is wrong with the arguments, in one line, without how they are to be.
fn usage_of(error: &clap::Error) -> CodedFailure {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = first.trim_start_matches("error: ").split_whitespace().collect();
    CodedFailure::usage(words.join(" "))
}

impl Command {
    /// Whether it was asked to print JSON.
    fn prints_json(&self) -> bool {
        match self {
            Self::Append(append) => append.json,
            Self::Read(read) => read.what.json,
            Self::Tail(tail) => tail.what.json,
            Self::Bench(bench) => bench.json,
            Self::Logs(logs) => logs.json,
            Self::Cursors(cursors) => cursors.json,
            Self::Verify(verify) => verify.json,
            Self::Repair(repair) => repair.json,
            Self::Serve(_) | Self::Completions { .. } => false,
        }
    }

    /// What to do if there is no log of the name.
    fn without_log(&self) -> &'static str {
        match self {
            Self::Append(_) => append::WITHOUT_LOG,
            Self::Logs(logs) if logs.deletes() => "there is nothing to delete",
            _ => "`millstream logs list` lists those that there are",
        }
    }
}

/// Makes a write beyond the limit of file sizes (`ulimit -f`) fail like a write to a full disk, instead of ending the
/// process. The handler remains after the runtime that installs it is gone.
fn outlive_file_size_limit() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _within = runtime.enter();
    signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
}

fn run(cli: &Cli) -> Outcome {
    match &cli.command {
        Command::Serve(serve) => serve_with_settings(serve),
        Command::Append(append) => append.run(),
        Command::Read(read) => read.run(),
        Command::Tail(tail) => tail.run(),
        Command::Bench(bench) => bench.run(),
        Command::Logs(logs) => logs.run(),
        Command::Cursors(cursors) => cursors.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "millstream", &mut script);
            stdout::write(|out| out.write_all(&script))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify(verify) => verify.run(),
        Command::Repair(repair) => repair.run(),
    }
}

/// Runs `serve` with the settings from its file and from environment variables with old names.
fn serve_with_settings(serve: &serve::Serve) -> Outcome {
    let mut command = Cli::command();
    let mut settings = serve_command(&mut command);
    if let Some(path) = &serve.config {
        settings = config::with_file(settings, path)?;
    }
    settings = config::with_old_variables(settings);
    let unknown_variables = config::unknown_variables(&settings);
    // Exits with 2 if a value is invalid.
    let matches = command.mut_subcommand("serve", |_| settings.clone()).get_matches();
    let Some((_, found)) = matches.subcommand() else { return serve.run(&unknown_variables) };
    if serve.print_config {
        let text = config::print(&settings, found, serve.config.is_some());
        stdout::write(|out| out.write_all(text.as_bytes()))?;
        return Ok(ExitCode::SUCCESS);
    }
    serve::Serve::from_arg_matches(found)?.run(&unknown_variables)
}

/// A number of things, with the noun in the singular or the plural.
fn counted(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

fn serve_command(command: &mut clap::Command) -> clap::Command {
    command.find_subcommand("serve").cloned().unwrap_or_default()
}

/// Where shared memory is, as a flag says it; `None` for "none".
fn shm_dir(given: &std::path::Path) -> Option<&std::path::Path> {
    Some(given).filter(|given| given.as_os_str() != "none")
}

/// Returns an error unless the directory exists: looking at a log must not create one.
fn must_exist(dir: &std::path::Path) -> Result<(), Failure> {
    if dir.is_dir() {
        return Ok(());
    }
    Err(format!("there is no directory {}; name one that holds a log", dir.display()).into())
}

/// Returns an error unless the directory may be that of a log: of a directory with several, it says which there are.
fn must_be_log(dir: &std::path::Path) -> Result<(), Failure> {
    /// How many logs are named.
    const MAX_NAMED: usize = 10;
    must_exist(dir)?;
    let is_segment = |path: &std::path::Path| path.extension().is_some_and(|end| end == "seg");
    let has_segments = |dir: &std::path::Path| {
        std::fs::read_dir(dir)
            .is_ok_and(|mut all| all.any(|entry| entry.is_ok_and(|entry| is_segment(&entry.path()))))
    };
    if has_segments(dir) {
        return Ok(());
    }
    let mut logs: Vec<_> = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    logs.retain(|path| has_segments(path));
    logs.sort();
    let Some(first) = logs.first() else { return Ok(()) }; // what it is will be found
    let names: Vec<_> = logs.iter().take(MAX_NAMED).filter_map(|path| path.file_name()?.to_str()).collect();
    let more =
        if logs.len() > MAX_NAMED { format!(", and {} more", logs.len() - MAX_NAMED) } else { String::new() };
    let (dir, names, first) = (dir.display(), names.join(", "), first.display());
    Err(format!("{dir} is a directory of logs ({names}{more}): name one of them, such as {first}").into())
}

/// The owner of the log's newest file, and so the user that its server ran as, if it is not the user of this process.
fn other_owner(dir: &std::path::Path) -> std::io::Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt;
    let mut owner = std::fs::metadata(dir)?.uid();
    let mut last = None;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = Some(entry.file_name()).filter(|name| name.as_encoded_bytes().ends_with(b".seg"));
        if name > last {
            (owner, last) = (entry.metadata()?.uid(), name);
        }
    }
    Ok(Some(owner).filter(|&uid| uid != rustix::process::geteuid().as_raw()))
}
