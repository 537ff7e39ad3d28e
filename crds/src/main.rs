//! Writes the generated YAML: `palisade-crds <directory for kubectl> <directory for the chart>`.

use std::{env, path::Path, process::ExitCode};

use palisade_crds::yaml::{YamlError, chart_templates, manifests, write};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [plain, chart] => {
            generate(Path::new(plain), Path::new(chart)).map_err(|error| error.to_string())
        }
        _ => {
            Err("usage: palisade-crds <directory for kubectl> <directory for the chart>".to_owned())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The only place of this program that speaks to its user.
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{message}");
            }
            ExitCode::FAILURE
        }
    }
}

fn generate(plain: &Path, chart: &Path) -> Result<(), YamlError> {
    write(plain, &manifests()?)?;
    write(chart, &chart_templates()?)
}
