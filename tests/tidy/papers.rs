//! The rule about the papers: commands, options and scripts in `README.md` and `docs/` are those of today.
//!
//! Commands are read from code blocks and from `code` in sentences. The known commands are read from the
//! sources: those of `tidevm` from `cli.rs` and `cli/` of its package (clap's derive, as rustfmt lays it out), those of
//! `xtask` from the patterns of its `main`. Nothing is built or run. Not checked: the values of options.

use std::collections::{BTreeMap, BTreeSet};

use tidevm_session::script::Script;

use crate::assert_none;
use crate::source::{Source, all};

/// What a subcommand understands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Command {
    options: BTreeSet<String>,
    subcommands: BTreeMap<String, Command>,
}

/// The programs that the papers call.
struct Programs {
    tidevm: Command,
    xtask: Command,
}

#[test]
fn the_papers_name_commands_and_options_that_exist() {
    let files = all();
    let source = |part: &dyn Fn(&str) -> bool| {
        let texts = files.iter().filter(|file| part(&file.path)).map(|file| file.text.as_str());
        texts.collect::<Vec<_>>().join("\n")
    };
    let cli = source(&|path| path == "vmm/cli/src/cli.rs" || path.starts_with("vmm/cli/src/cli/"));
    let main = source(&|path| path == "xtask/src/main.rs");
    let programs = Programs { tidevm: clap_commands(&cli), xtask: matched_commands(&main) };
    assert!(programs.tidevm.subcommands.len() > 3, "the command line of tidevm is not understood");
    assert!(programs.xtask.subcommands.len() > 3, "the command line of xtask is not understood");
    let complaints: Vec<String> =
        papers(&files).flat_map(|paper| untrue_commands(paper, &programs)).collect();
    assert_none("commands that do not exist", &complaints);
}

#[test]
fn the_scripts_of_the_papers_parse() {
    let files = all();
    let complaints: Vec<String> = papers(&files).flat_map(broken_scripts).collect();
    assert_none("scripts that do not parse", &complaints);
}

fn papers(files: &[Source]) -> impl Iterator<Item = &Source> {
    let is_paper = |path: &str| path == "README.md" || path.starts_with("docs/");
    files.iter().filter(move |file| is_paper(&file.path) && file.path.ends_with(".md"))
}

/// The command line that clap derives from `cli`: its enum `Action` and what hangs on it, the options of the struct
/// `Spawn`, which stand without a subcommand, and those of `Logging`, which stand everywhere.
fn clap_commands(cli: &str) -> Command {
    let mut items: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut lines = cli.lines();
    while let Some(line) = lines.next() {
        let Some((_, item)) = line.split_once("struct ").or_else(|| line.split_once("enum ")) else {
            continue;
        };
        if let Some(name) = item.strip_suffix(" {").filter(|_| !line.starts_with(' ')) {
            items.insert(name, lines.by_ref().take_while(|line| *line != "}").collect());
        }
    }
    let options = clap_item("Spawn", &items).options;
    let mut command = Command { options, ..clap_item("Action", &items) };
    add_everywhere(&clap_item("Logging", &items).options, &mut command);
    command
}

fn add_everywhere(options: &BTreeSet<String>, command: &mut Command) {
    command.options.extend(options.iter().cloned());
    command.subcommands.values_mut().for_each(|inner| add_everywhere(options, inner));
}

/// The options and subcommands of one struct or enum.
fn clap_item(name: &str, items: &BTreeMap<&str, Vec<&str>>) -> Command {
    let mut command = Command::default();
    let (mut is_option, mut is_subcommand, mut is_flat) = (false, false, false);
    // The variant whose fields are being read.
    let mut variant = None;
    for line in items.get(name).into_iter().flatten() {
        let text = line.trim().trim_start_matches("pub ");
        let word = text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if text.starts_with("#[") {
            is_option |= text.starts_with("#[arg(long");
            is_subcommand |= text == "#[command(subcommand)]";
            is_flat |= text == "#[command(flatten)]";
        } else if word.starts_with(|c: char| c.is_uppercase()) {
            let inner = text[word.len()..].trim_matches(|c| matches!(c, '(' | ')' | ','));
            let inner = inner.trim_start_matches("Later<").trim_start_matches("Box<").trim_end_matches('>');
            command.subcommands.insert(kebab(word), clap_item(inner, items));
            variant = text.ends_with('{').then(|| kebab(word));
        } else if let Some((field, of)) =
            text.split_once(": ").filter(|_| word.starts_with(char::is_lowercase))
        {
            let owner = match &variant {
                Some(variant) => command.subcommands.get_mut(variant).expect("a variant that was added"),
                None => &mut command,
            };
            if is_subcommand {
                owner.subcommands.extend(clap_item(of.trim_end_matches(','), items).subcommands);
            } else if is_flat {
                owner.options.extend(clap_item(of.trim_end_matches(','), items).options);
            } else if is_option {
                owner.options.insert(format!("--{}", kebab(field)));
            }
            (is_option, is_subcommand, is_flat) = (false, false, false);
        }
    }
    command
}

/// `MemoryBlock` and `memory_block` as `memory-block`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        match c {
            '_' => kebab.push('-'),
            _ if c.is_uppercase() && !kebab.is_empty() => kebab.extend(['-', c.to_ascii_lowercase()]),
            _ => kebab.push(c.to_ascii_lowercase()),
        }
    }
    kebab
}

/// The commands in the patterns `["name", "--option"] =>` of a `match` over the arguments.
fn matched_commands(main: &str) -> Command {
    let mut command = Command::default();
    for line in main.lines().map(str::trim).filter(|line| line.starts_with("[\"") && line.contains("=>")) {
        let mut words = line.split('"').skip(1).step_by(2);
        let name = words.next().unwrap_or_default().to_owned();
        let of: &mut Command = command.subcommands.entry(name).or_default();
        of.options.extend(words.filter(|word| word.starts_with("--")).map(str::to_owned));
    }
    command
}

/// What `paper` calls or names and `programs` do not have.
fn untrue_commands(paper: &Source, programs: &Programs) -> Vec<String> {
    let (blocks, sentences) = split(&paper.text);
    let mut complaints = Vec::new();
    for block in &blocks {
        for line in block.text.replace("\\\n", " ").lines() {
            let line = line.trim_start_matches("$ ").trim_start_matches("ExecStart=/usr/bin/");
            let line = line.split(" # ").next().unwrap_or_default();
            complaints.extend(programs.check(line));
        }
    }
    for code in sentences.split('`').skip(1).step_by(2) {
        if code.starts_with("--") {
            complaints.extend(programs.check_option(code));
        } else {
            complaints.extend(programs.check(&code.replace('\n', " ")));
        }
    }
    complaints.into_iter().map(|complaint| format!("{}: {complaint}", paper.path)).collect()
}

impl Programs {
    /// What is wrong with a command line, if it calls one of the programs.
    fn check(&self, line: &str) -> Option<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["tidevm", ..] => check(&self.tidevm, &words, 1),
            ["cargo", "xtask", "nested", "--", ref program @ ..] => self.check(&program.join(" ")),
            ["cargo", "xtask", ..] => check(&self.xtask, &words, 2),
            _ => None,
        }
    }

    /// What is wrong with an option of `tidevm` that stands alone.
    fn check_option(&self, code: &str) -> Option<String> {
        let option = code.split([' ', '=']).next()?;
        let inner = self.tidevm.subcommands.values().any(|command| command.options.contains(option));
        let known = inner || self.tidevm.options.contains(option);
        (!known).then(|| format!("tidevm has no option {option}"))
    }
}

/// Checks `words`, whose first `at` name `command`.
fn check(command: &Command, words: &[&str], at: usize) -> Option<String> {
    let (name, rest) = (words[..at].join(" "), &words[at..]);
    let is_option = |word: &str| command.options.contains(word.split('=').next().unwrap_or_default());
    if let Some(first) = rest.first().filter(|word| !command.subcommands.is_empty() && !is_option(word)) {
        return match command.subcommands.get(*first) {
            Some(inner) => check(inner, words, at + 1),
            // What clap has by itself, and a word in capitals stands for any.
            None if matches!(*first, "help" | "--help" | "--version") || *first == first.to_uppercase() => {
                None
            }
            None => Some(format!("`{name}` has no command {first}")),
        };
    }
    let mut given =
        rest.iter().filter(|word| word.starts_with("--")).filter_map(|word| word.split('=').next());
    let unknown = given.find(|option| !command.options.contains(*option))?;
    Some(format!("`{name}` has no option {unknown}"))
}

/// The scripts of `paper` that do not parse: code blocks marked as `script`, and what `$ cat x.script` shows.
fn broken_scripts(paper: &Source) -> Vec<String> {
    let (blocks, _) = split(&paper.text);
    let mut scripts = Vec::new();
    for block in blocks {
        if block.language == "script" {
            scripts.push(block.text);
            continue;
        }
        let mut shown: Option<String> = None;
        for line in block.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                scripts.extend(shown.take());
                shown = (command.starts_with("cat ") && command.ends_with(".script")).then(String::new);
            } else if let Some(script) = &mut shown {
                *script += &format!("{line}\n");
            }
        }
        scripts.extend(shown);
    }
    let errors = scripts.iter().filter_map(|script| parse(script).err());
    errors.map(|error| format!("{}: {error}", paper.path)).collect()
}

/// The grammar of scripts: the one place that knows where it lives.
fn parse(script: &str) -> Result<(), String> {
    Script::parse("script", script).map(|_| ()).map_err(|errors| errors.to_string())
}

struct Block {
    /// What stands behind the opening fence.
    language: String,
    text: String,
}

/// The code blocks of a Markdown text, and the text around them.
fn split(text: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut around) = (Vec::new(), String::new());
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => {
                open = Some(Block { language: language.to_owned(), text: String::new() });
            }
            (None, Some(block)) => open = Some(Block { text: block.text + line + "\n", ..block }),
            (None, None) => around += &format!("{line}\n"),
        }
    }
    (blocks, around)
}

#[cfg(test)]
mod made_up {
    use super::{Programs, Source, broken_scripts, clap_commands, matched_commands, untrue_commands};

    const CLI: &str = "
pub struct Cli {
    #[command(subcommand)]
    pub action: Action,
}
pub enum Action {
    /// Shows it
    Demo,
    Run(Later<Box<Run>>),
    Script {
        #[command(subcommand)]
        action: ScriptAction,
    },
}
pub enum ScriptAction {
    Check {
        file: PathBuf,
    },
}
pub struct Run {
    #[arg(long, value_name = \"SIZE\", default_value_t = Size(1), value_parser = size)]
    memory_block: Size,
    name: String,
    #[arg(long)]
    pub json: bool,
}
pub struct Logging {
    #[arg(long, global = true)]
    pub log_file: Option<PathBuf>,
}
";

    const XTASK: &str = "
        [\"setup\"] => {}
        [\"features\", \"--record\"] => {}
        [\"nested\", \"--\", program, ..] => {}
";

    fn paper(text: &str) -> Source {
        Source { path: "README.md".to_owned(), text: text.to_owned() }
    }

    fn untrue(text: &str) -> Vec<String> {
        let programs = Programs { tidevm: clap_commands(CLI), xtask: matched_commands(XTASK) };
        untrue_commands(&paper(text), &programs)
    }

    #[test]
    fn what_is_true_passes() {
        for text in [
            "```\n$ tidevm run --memory-block 1G \\\n    --json\n--what it prints\ntidevm demo\n```\n",
            "```\ncargo xtask setup   # sets --everything up\ncargo xtask features --record\n```\n",
            "`tidevm script check FILE`, `--json`, `--memory-block=2G` and `cargo test --nothing`",
            "`cargo xtask nested -- tidevm run --json`, `cargo xtask nested -- sessions`",
            "`tidevm script check --log-file x FILE`, `tidevm --log-file x demo`",
            "tidevm walks --free outside of code; `tidevm COMMAND`, `tidevm --version`",
        ] {
            assert_eq!(untrue(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn what_is_untrue_is_found() {
        for (text, complaint) in [
            ("```\ntidevm fly\n```", "`tidevm` has no command fly"),
            ("```\n$ tidevm run --memory-block 1G \\\n    --jso\n```", "`tidevm run` has no option --jso"),
            ("```sh\ntidevm run --name=x\n```", "`tidevm run` has no option --name"),
            ("```\nExecStart=/usr/bin/tidevm run --name x\n```", "`tidevm run` has no option --name"),
            ("`tidevm\ndemo --json`", "`tidevm demo` has no option --json"),
            ("`tidevm script make`", "`tidevm script` has no command make"),
            ("say `--jason on`", "tidevm has no option --jason"),
            ("`cargo xtask teardown`", "`cargo xtask` has no command teardown"),
            ("`cargo xtask setup --record`", "`cargo xtask setup` has no option --record"),
            ("`cargo xtask nested -- tidevm run --fast`", "`tidevm run` has no option --fast"),
        ] {
            assert_eq!(untrue(text), [format!("README.md: {complaint}")], "{text}");
        }
    }

    #[test]
    fn scripts_are_parsed() {
        for good in ["```script\nplug 1G\n```", "```\n$ cat a.script\nplug 1G\n$ tidevm demo\nplug what\n```"]
        {
            assert_eq!(broken_scripts(&paper(good)), [""; 0], "{good}");
        }
        for bad in ["```script\nplug what\n```", "```\n$ cat a.script\nplug what\n```"] {
            assert_eq!(broken_scripts(&paper(bad)).len(), 1, "{bad}");
        }
    }
}
