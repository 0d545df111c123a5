//! What settings are called in the environment.

/// Settings whose variables everybody calls by another name.
pub(super) const COMMON_NAMES: &[(&str, &str)] = &[("database_url", "DATABASE_URL"), ("redis_url", "REDIS_URL")];

/// The variable of a setting.
pub(super) fn variable_of(name: &str) -> String {
    let common = COMMON_NAMES.iter().find(|(known, _)| *known == name);
    common.map_or_else(|| format!("ONRUSH_{}", name.to_uppercase().replace('.', "__")), |(_, it)| (*it).to_owned())
}
