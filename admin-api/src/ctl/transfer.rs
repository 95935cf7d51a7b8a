//! `gatewayctl export`, `import` and `validate`: configuration as files.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;

use super::{
    Outcome,
    client::{Ask, Client},
    failure::Failure,
    output::{Output, cell},
    progress::Progress,
    wait::{Wait, written},
};

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Instead of standard output.
    #[arg(long, short = 'f')]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// As a gateway reads it; - is standard input. Relative paths in it begin at the folder that nodes name as
    /// `control_plane.files`.
    file: PathBuf,
    /// Remove the tenants that are not in the file.
    #[arg(long)]
    replace: bool,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Stands with the new revision.
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Validate {
    /// As a gateway reads it; - is standard input.
    file: PathBuf,
}

pub(super) async fn export(arguments: Export, client: &Client, _: &Output) -> Result<Outcome, Failure> {
    let Some(path) = arguments.file else {
        let mut out = BufWriter::new(io::stdout());
        client.read(Ask::get("/export"), &Progress::none(), |piece| Ok(out.write_all(piece)?)).await?;
        out.flush()?;
        return Ok(Outcome::Done);
    };
    let receive = async |take: &mut Take<'_>| client.read(Ask::get("/export"), &Progress::none(), take).await;
    save(&path, "exporting", receive).await?;
    Ok(Outcome::Done)
}

/// Takes what is received, piece by piece.
pub(super) type Take<'a> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'a;

/// Writes what is received into a file, which is whole or is not there.
pub(super) async fn save(
    path: &Path,
    doing: &'static str,
    receive: impl AsyncFnOnce(&mut Take<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let unwritable = |source| Failure::Write { path: path.to_owned(), source };
    let mut next = path.as_os_str().to_owned();
    next.push(".part");
    let next = PathBuf::from(next);
    let progress = Progress::new(doing, None);
    let received = async {
        let mut file = BufWriter::new(File::create(&next).map_err(unwritable)?);
        let mut take = |piece: &[u8]| {
            progress.add(piece.len());
            file.write_all(piece).map_err(unwritable)
        };
        receive(&mut take).await?;
        file.into_inner().map_err(|error| unwritable(error.into_error()))?.sync_all().map_err(unwritable)?;
        fs::rename(&next, path).map_err(unwritable)
    };
    let received = received.await;
    progress.end();
    if received.is_err() {
        let _ = fs::remove_file(&next);
    }
    received
}

pub(super) async fn import(arguments: Import, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let body = read_input(&arguments.file)?;
    let progress = Progress::new("importing", Some(body.len()));
    let mut ask = Ask::post("/import").yaml(body).query_if("reason", arguments.reason);
    if arguments.replace {
        ask = ask.query("replace", true);
    }
    if arguments.dry_run {
        ask = ask.query("dry_run", true);
    }
    let answer = client.ask_with(arguments.wait.apply(ask), &progress).await;
    progress.end();
    output.show(&answer?.json()?, |answer| imported(answer, arguments.dry_run))?;
    Ok(Outcome::Done)
}

fn imported(answer: &Value, is_dry_run: bool) -> String {
    let tenants = answer["changed"].as_array().map_or(0, Vec::len);
    if is_dry_run {
        return format!("{tenants} tenants would be added, changed or removed: {}", cell(&answer["changed"]));
    }
    format!("{tenants} tenants added, changed or removed: {}", written(answer))
}

pub(super) async fn validate(arguments: Validate, client: &Client, output: &Output) -> Result<Outcome, Failure> {
    let answer = client.json(Ask::post("/validate").yaml(read_input(&arguments.file)?)).await?;
    output.show(&answer, |answer| format!("nothing is wrong with its {} tenants", cell(&answer["tenants"])))?;
    Ok(Outcome::Done)
}

/// A file, or standard input for `-`.
pub(super) fn read_input(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text).map(|_| text)
    } else {
        fs::read(path)
    };
    read.map_err(|source| Failure::Read { path: path.to_owned(), source })
}

pub(super) fn text_of(bytes: &[u8], path: &Path) -> Result<String, Failure> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Failure::Read {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"),
    })
}
