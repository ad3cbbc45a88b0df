//! `tidevm`: turns arguments into a VM and a script, and the end of the session into an exit status.

mod account;
mod check_host;
mod cli;
mod ctl;
mod host;
mod input;
mod judge;
mod lean;
mod logger;
mod page;
mod pages;
mod prompt;
mod quiet;
mod served;
mod sized;
mod source;
mod top;
mod verdicts;

use std::fmt::Display;
use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use account::{Account, Outputs, accounted};
use anyhow::{Context, anyhow, bail};
use cli::{
    Action, CheckHost, Cli, Ctl, Experiment, Later, Logging, ManPages, ReportPage, Run, ScriptAction,
    Scripts, Spawn,
};
use lean::Lean;
use prompt::History;
use quiet::Quiet;
use served::{Api, identity};
use source::{STDIN, Source, Steps, greet};
use tidevm_abi::Counted;
use tidevm_api::{Control, ControlError, Draft, open_to_append};
use tidevm_events::Line;
use tidevm_lab::experiment::kvm_lab::KvmLab;
use tidevm_lab::experiment::{ALL, Halt, Verdict, json, text};
use tidevm_machine::{
    Config, Confinement, Destination, Seccomp, Snapshot, StartError, Vm, fail_at_file_limit, is_refusal,
    printable, room_to_start,
};
use tidevm_session::json::Events;
use tidevm_session::script::{Script, ScriptErrors};
use tidevm_session::table::Table;
use tidevm_session::{Both, Ended, Observer, Remembered, Summary};
use tidevm_sizer::{Sizer, Wish};

fn main() -> ExitCode {
    // Before anything is allocated: an allocation that fails ends the process without a word of ours.
    if room_to_start().is_err() {
        drop(io::stderr().write_all(b"tidevm: no room to start: raise the limit of addresses (ulimit -v)\n"));
        return ExitCode::from(3);
    }
    fail_at_file_limit();
    let Cli { action, spawn: options, logging } = Cli::read();
    let result = start_log(&logging).and_then(|()| action.map_or_else(|| spawn(&options), execute));
    let status = match result {
        Ok(status) => status,
        Err(error) => {
            match error.downcast_ref::<ScriptErrors>() {
                Some(errors) => complain(errors),
                None => complain(format_args!("tidevm: {error:#}")),
            }
            status_of(&error)
        }
    };
    ExitCode::from(status)
}

/// Prints to stderr, without what could command a terminal: the text may repeat a guest or a file. After a
/// hang-up stderr may be closed, which is ignored.
fn complain(what: impl Display) {
    drop(writeln!(io::stderr(), "{}", printable(what.to_string().as_bytes())));
}

/// By the cause, wherever it is met: 3 if the host refuses, 1 if standard output was closed, 2 for bad usage.
fn status_of(error: &anyhow::Error) -> u8 {
    let start = || Some(if error.downcast_ref::<StartError>()?.is_refusal() { 3 } else { 2 });
    let ctl = || Some(error.downcast_ref::<ctl::CtlError>()?.status());
    let top = || Some(error.downcast_ref::<top::TopError>()?.status());
    let judge = || Some(error.downcast_ref::<judge::JudgeError>()?.status());
    if let Some(status) = start().or_else(ctl).or_else(top).or_else(judge) {
        return status;
    }
    if error.chain().filter_map(|cause| cause.downcast_ref()).any(is_refusal) {
        return 3;
    }
    if error.is::<OutputClosed>() { 1 } else { 2 }
}

/// The session ended because standard output is closed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct OutputClosed;

fn execute(action: Action) -> anyhow::Result<u8> {
    match action {
        Action::Demo(options) => {
            let script = Script::parse("demo.script", include_str!("demo.script"))?;
            accounted(Account::new(Outputs::json(options.json))?, status_of, |account| {
                let config = options.config();
                account.start(Some(&config)).context(OutputClosed)?;
                run(config, Steps::Whole(script), account, None, None)
            })
        }
        Action::Run(options) => {
            let account = Account::new(Outputs::of(&options))?;
            accounted(account, status_of, |account| run_told(&options, account))
        }
        Action::Top(options) => {
            let (status, end) = top::run(&options.api_sock)?;
            if let Some(sentence) = end {
                complain(format_args!("tidevm: {sentence}"));
            }
            Ok(status)
        }
        Action::Report(options) => report(&options),
        Action::Ctl(Later(Ctl { api_sock, json, words })) => {
            let complain = |reason: &str| complain(format_args!("tidevm: {reason}"));
            Ok(ctl::run(&api_sock, &words, json, complain)?)
        }
        Action::Experiment(options) => run_experiments(&options),
        Action::Judge(options) => Ok(judge::run(&options)?),
        Action::Script(Scripts { action: ScriptAction::Check { file, guest } }) => {
            let script = read(&file, &Remembered::default())?;
            script.fit_kernel(guest)?;
            let steps = Counted(script.steps(), "step");
            writeln!(io::stdout(), "{}: OK, {steps}", script.file).context(OutputClosed)?;
            Ok(0)
        }
        Action::CheckHost(Later(CheckHost { json })) => check_host::run(json).context(OutputClosed),
        Action::Completions(options) => {
            pages::completions(options.shell).context(OutputClosed)?;
            Ok(0)
        }
        Action::Man(Later(ManPages { folder: None })) => {
            pages::man().context(OutputClosed)?;
            Ok(0)
        }
        Action::Man(Later(ManPages { folder: Some(folder) })) => {
            pages::man_pages(&folder)
                .with_context(|| format!("cannot write man pages into {}", folder.display()))?;
            Ok(0)
        }
    }
}

/// Logs from now on, as the options say, or else the environment.
fn start_log(options: &Logging) -> anyhow::Result<()> {
    let file = options.log_file.as_deref().map(|path| {
        open_to_append(path).with_context(|| format!("cannot open --log-file {}", path.display()))
    });
    let level = match options.log_level {
        Some(level) => Some(level),
        None => logger::level_of_environment().map_err(|wrong| anyhow!("{wrong}"))?,
    };
    logger::start(level, file.transpose()?);
    Ok(())
}

/// `tidevm run`, of which `account` is told.
fn run_told(options: &Run, account: &mut Account) -> anyhow::Result<u8> {
    let snapshot = options.restore.as_deref().map(Snapshot::open).transpose().map_err(StartError::from);
    let known = snapshot.as_ref().ok().and_then(Option::as_ref);
    account.start(config(options, false, known).as_ref().ok()).context(OutputClosed)?;
    let snapshot = snapshot?;
    let remembered = snapshot.as_ref().map(Remembered::of).unwrap_or_default();
    let steps = steps(options, &remembered)?;
    if let Steps::Whole(script) = &steps {
        account.plan(script);
    }
    let interactive = matches!(steps, Steps::Typed(_));
    let config = config(options, interactive, snapshot.as_ref())?;
    let save = options.save.as_deref().map(Destination::make).transpose()?;
    let config = Config { resets: steps.resets(), interactive, save, ..config };
    greet(&config);
    let api = Api::of(options);
    run(config, steps, account, api, options.auto)
}

/// `tidevm report`.
fn report(options: &ReportPage) -> anyhow::Result<u8> {
    let page = page::page(&options.session)?;
    match &options.output {
        Some(path) => fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?,
        None => io::stdout().write_all(page.as_bytes()).context(OutputClosed)?,
    }
    Ok(0)
}

fn config(options: &Run, prompt: bool, snapshot: Option<&Snapshot>) -> anyhow::Result<Config> {
    options.config(prompt, snapshot).map_err(|conflict| anyhow!("{conflict}"))
}

/// What the options say that a machine with the workloads `remembered` is to do.
fn steps(options: &Run, remembered: &Remembered) -> anyhow::Result<Steps> {
    Ok(match options.script.as_deref() {
        None if options.allows_prompt() && prompt::has_person() => Steps::Typed(History::open()),
        None => Steps::None,
        Some(file) if file.as_os_str() == "-" => Steps::Piped,
        Some(file) => Steps::Whole(read(file, remembered)?),
    })
}

/// Reads and parses a whole script, for a machine with the workloads `remembered`, before anything is started.
fn read(file: &Path, remembered: &Remembered) -> anyhow::Result<Script> {
    let (name, bytes) = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).context("cannot read the script from standard input")?;
        (STDIN.to_owned(), bytes)
    } else {
        let name = file.display().to_string();
        let bytes = fs::read(file).with_context(|| format!("cannot read the script {name}"))?;
        (name, bytes)
    };
    let text = String::from_utf8(bytes).with_context(|| format!("the script {name} is no text"))?;
    Ok(Script::parse_after(&name, &text, remembered)?)
}

/// Runs the experiments that `options` name, and gives the exit status.
fn run_experiments(options: &Experiment) -> anyhow::Result<u8> {
    let all = options.name == "all";
    let folder = options.output.as_deref().or(all.then_some(Path::new(".")));
    if let Some(folder) = folder {
        // Before the experiments, which take their time.
        fs::create_dir_all(folder).with_context(|| format!("--output {}", folder.display()))?;
    }
    let start = host::start(None);
    let confinement = options.confinement();
    tell_of(confinement);
    confinement.of_starter(folder.as_slice()).map_err(StartError::from)?;
    let mut lab = KvmLab::new(io::stderr(), confinement);
    let mut verdicts = Vec::new();
    let mut halt = None;
    for experiment in ALL.iter().filter(|experiment| all || experiment.name == options.name) {
        match experiment.run(&mut lab) {
            Ok(verdict) => verdicts.push(verdict),
            Err(reason) => {
                halt = Some(reason);
                break;
            }
        }
    }
    // Verdicts from before a halt are written as well.
    let written = folder.map_or(Ok(()), |folder| verdicts::write(folder, &start, &verdicts));
    let shown = if options.json { json::json(&verdicts) } else { text::text(&verdicts) };
    io::stdout().write_all(shown.as_bytes()).context(OutputClosed)?;
    written?;
    match halt {
        Some(Halt::Start(error)) => Err(error.into()),
        Some(Halt::Signal(signal)) => Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        None => Ok(u8::from(!verdicts.iter().all(Verdict::passed))),
    }
}

/// Runs a machine, with an API and sized automatically if it shall be so.
fn run(
    mut config: Config,
    steps: Steps,
    account: &mut Account,
    api: Option<Api<'_>>,
    auto: Option<Wish>,
) -> anyhow::Result<u8> {
    config.validate().map_err(StartError::from)?;
    let sizer = sized::sizer(&config, auto)?;
    if let Steps::Whole(script) = &steps {
        script.fit(&config)?;
    }
    tell_of(config.confinement);
    let listen = |Api { path, id, metrics }: Api<'_>| {
        let (draft, base) = (Draft::of(&config), config.clone());
        let sizer = sizer.clone();
        let mut control = Control::listen(path, draft, identity(id), base, logger::redirect, sizer)?;
        if let Some(address) = metrics {
            control.serve_metrics(address)?;
        }
        Ok::<_, ControlError>(control)
    };
    // Clients may have the machine sized later.
    let sized = auto.is_some() || api.is_some();
    let control = api.map(listen).transpose()?;
    config.console.listen()?;
    if let Some(jail) = &config.jail {
        jail.fork().map_err(StartError::from)?;
    }
    let beside = control.map(|control| Control::beside(Arc::new(Mutex::new(Some(control)))));
    let beside = beside.into_iter().chain(sized.then(|| sizer.beside()));
    let longest = steps.longest();
    let (reader, source) = Source::of(steps, &config, |what| complain(what));
    let start = |config| Vm::start_with(config, beside.chain(reader).collect());
    let (has_stdout, told) = (account.has_stdout(), account.is_wanted());
    let mut events = Events(|line: &Line| account.take(line));
    if has_stdout {
        return observe(start(config)?, source, &mut events);
    }
    // Before the start, which takes away the means to ask about a terminal.
    let stdout = anstream::stdout();
    let terminal = io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    let width = terminal.map(|(width, _)| usize::from(width.0));
    let mut table = Table::new(stdout, width, longest);
    if told {
        return observe(start(config)?, source, &mut Both(table, events));
    }
    observe(start(config)?, source, &mut table)
}

/// `tidevm` without a subcommand: waits for clients to configure and start a machine, or starts that of the file, and runs it to its end.
fn spawn(options: &Spawn) -> anyhow::Result<u8> {
    let base = options.base();
    greet(&base);
    tell_of(base.confinement);
    let file = options.config_file.as_deref();
    let mut draft = match file {
        Some(path) => {
            let name = path.display();
            let text =
                fs::read_to_string(path).with_context(|| format!("cannot read --config-file {name}"))?;
            Draft::from_json(&text).map_err(|error| anyhow!("--config-file {name}: {error}"))?
        }
        None => Draft::default(),
    };
    draft.add_command_line(options.logger(), options.metrics()).map_err(|error| anyhow!("{error}"))?;
    let Some(path) = options.api_sock.as_deref().filter(|_| !options.no_api) else {
        if draft.metrics.is_some() {
            bail!(
                "--no-api: the thread of the API writes the metrics; give it a socket, or leave metrics out"
            );
        }
        draft.start_log(logger::redirect).map_err(|error| anyhow!("{error}"))?;
        let config = draft.config(&base).map_err(|error| anyhow!("--config-file: {error}"))?;
        return observe(Vm::start(config)?, Source::None, &mut Quiet);
    };
    let sizer = sized::sizer(&base, None)?;
    let (id, clients) = (identity(&options.id), sizer.clone());
    let mut control = Control::listen(path, draft, id, base.clone(), logger::redirect, clients)?;
    loop {
        let config = if file.is_some() { control.config(&base)? } else { control.configure()? };
        let shared = Arc::new(Mutex::new(Some(control)));
        let error = match start_beside(config, &shared, &sizer) {
            Ok(vm) => return observe(vm, Source::None, &mut Quiet),
            Err(error) => error,
        };
        // Taken only when the VM was about to run.
        let Some(taken) = shared.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Err(error.into());
        };
        control = taken;
        control.refuse(&error);
        // The machine can be configured anew, unless the process is locked in by now.
        let locked_in =
            matches!(error, StartError::Host { .. } | StartError::Confinement(_) | StartError::Jail(_));
        if file.is_some() || locked_in {
            return Err(error.into());
        }
    }
}

fn start_beside(
    config: Config,
    control: &Arc<Mutex<Option<Control>>>,
    sizer: &Sizer,
) -> Result<Vm, StartError> {
    Vm::start_with(config, vec![Control::beside(Arc::clone(control)), sizer.beside()])
}

/// Under `--seccomp log` the log tells too what this host cannot enforce.
fn tell_of(confinement: Confinement) {
    if confinement.seccomp == Seccomp::Log {
        logger::tell_more();
    }
}

fn observe(vm: Vm, source: Source, observer: &mut impl Observer) -> anyhow::Result<u8> {
    let observer = &mut Lean { observer, confinement: vm.config().confinement };
    let result = match source {
        Source::None => tidevm_session::stay(vm, observer),
        Source::Whole(script) => tidevm_session::run(vm, &script, observer),
        Source::Lines(script, mut input, manner) => {
            tidevm_session::follow(vm, *script, &mut input, manner, observer)
        }
    };
    let Summary { ended, .. } = result.context(OutputClosed)?;
    match &ended {
        Ended::Died(death) => complain(death),
        Ended::Misread(errors) => complain(errors),
        _ => {}
    }
    Ok(ended.status())
}
