//! Secrets in files: `<NAME>_FILE` names a file with the value of `<NAME>`, as container platforms hand secrets over. A
//! variable is seen by whoever may look at the process; a file has an owner and a mode.

use std::collections::HashMap;
use std::path::Path;

use super::names::variable_of;
use super::settings::SETTINGS;

/// What a variable ends with that names a file.
const SUFFIX: &str = "_FILE";
/// Longest file that is read.
const LIMIT_BYTES: u64 = 64 << 10;

/// The variable whose value is in the file that this variable names: of a secret setting alone, and where no setting has
/// that name itself.
pub(super) fn secret_of(variable: &str) -> Option<&str> {
    let stem = variable.strip_suffix(SUFFIX)?;
    let is_setting = SETTINGS.iter().any(|setting| variable_of(setting.name) == variable);
    let is_secret = SETTINGS.iter().any(|setting| setting.is_secret && variable_of(setting.name) == stem);
    (is_secret && !is_setting).then_some(stem)
}

/// Puts what is in the named files in the place of their names. What is wrong with them is told by the variable, and
/// never has anything of a file in it.
pub(super) fn read(variables: &mut HashMap<String, String>, faults: &mut Vec<String>) {
    let naming: Vec<String> = variables.keys().filter(|name| secret_of(name).is_some()).cloned().collect();
    for name in naming {
        let Some((path, secret)) = variables.remove(&name).zip(secret_of(&name)) else { continue };
        if path.is_empty() {
            continue;
        }
        if variables.get(secret).is_some_and(|value| !value.is_empty()) {
            faults.push(format!("{name} and {secret} are both set: one of them must go"));
            continue;
        }
        match value_of(Path::new(&path)) {
            Ok(value) => drop(variables.insert(secret.to_owned(), value)),
            Err(why) => {
                faults.push(format!("{name} must be the path of a file with the value of {secret}: {path}: {why}"))
            }
        }
    }
}

/// The text of a file, without the end of its last line.
fn value_of(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LIMIT_BYTES {
        return Err("it is too long to be a secret".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "it must be UTF-8 text".to_owned())?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err("it is empty".to_owned()),
        value => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_from(variables: &[(&str, &str)]) -> (HashMap<String, String>, Vec<String>) {
        let mut variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut faults = Vec::new();
        read(&mut variables, &mut faults);
        (variables, faults)
    }

    #[test]
    fn every_secret_setting_and_no_other_may_come_from_a_file() {
        for setting in SETTINGS {
            let variable = format!("{}{SUFFIX}", variable_of(setting.name));
            assert_eq!(secret_of(&variable).is_some(), setting.is_secret, "{variable}");
        }
        // These name a setting of their own.
        for variable in ["ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE", "ONRUSH_PAYMENTS__STRIPE__SECRET_KEY_FILE"] {
            assert_eq!(secret_of(variable), None, "{variable}");
        }
    }

    #[test]
    fn what_is_in_a_file_takes_the_place_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("url"), "mysql://u:p@h/db\n").unwrap();
        std::fs::write(path("secret"), " with blanks \r\n").unwrap();
        let (url, secret) = (path("url"), path("secret"));
        let (known, faults) = read_from(&[
            ("DATABASE_URL_FILE", &url),
            ("ONRUSH_AUTH__JWT_SECRET_FILE", &secret),
            ("ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE", "a.pem"),
            ("ONRUSH_HTTP__LISTEN_FILE", "x"),
            ("REDIS_URL", "redis://h"),
            ("REDIS_URL_FILE", ""),
        ]);
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(known["DATABASE_URL"], "mysql://u:p@h/db");
        assert_eq!(known["ONRUSH_AUTH__JWT_SECRET"], " with blanks ");
        assert_eq!(known["ONRUSH_AUTH__JWT_PRIVATE_KEY_FILE"], "a.pem");
        assert_eq!(known["REDIS_URL"], "redis://h");
        assert!(!known.contains_key("DATABASE_URL_FILE") && !known.contains_key("REDIS_URL_FILE"));
        assert!(known.contains_key("ONRUSH_HTTP__LISTEN_FILE"), "it is told as no setting, as any other");
    }

    #[test]
    fn a_file_that_is_no_use_is_told_by_the_variable_and_without_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("empty"), "\n").unwrap();
        std::fs::write(path("latin"), b"hush\xe9t").unwrap();
        std::fs::write(path("long"), vec![b'a'; 65 << 10]).unwrap();
        for (file, why) in [("empty", "empty"), ("latin", "UTF-8"), ("long", "too long"), ("none", "No such file")] {
            let (known, faults) = read_from(&[("REDIS_URL_FILE", &path(file))]);
            assert!(faults.len() == 1 && faults[0].contains("REDIS_URL_FILE must be the path"), "{faults:?}");
            assert!(faults[0].contains(why) && !faults[0].contains("hush") && known.is_empty(), "{faults:?}");
        }
        let (known, faults) = read_from(&[("REDIS_URL", "redis://h"), ("REDIS_URL_FILE", &path("empty"))]);
        assert_eq!(faults, ["REDIS_URL_FILE and REDIS_URL are both set: one of them must go"]);
        assert_eq!(known["REDIS_URL"], "redis://h");
    }
}
