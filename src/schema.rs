//! The schema of the database: the migrations of the service and of its engine, and how they are run.

use std::sync::LazyLock;

use sqlx::migrate::Migrator;

use crate::engine;
use crate::platform::db::{self, Db};

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| db::together(&[&engine::MIGRATOR, &sqlx::migrate!("./migrations")]));

/// Brings the schema up to date and gives how many migrations that took. Copies that start together wait for each other.
pub async fn migrate(db: &Db) -> anyhow::Result<usize> {
    db::migrate(db, &MIGRATIONS).await
}

/// How many migrations this version has that the database has not. A database that is ahead has none: the version
/// before this one still runs while the next is rolled out.
pub async fn pending_migrations(db: &Db) -> anyhow::Result<usize> {
    db::pending_migrations(db, &MIGRATIONS).await
}

#[cfg(test)]
mod tests {
    use onrush_platform::db::statements;

    use super::*;

    #[test]
    fn each_file_is_divided_into_its_statements() {
        for migration in MIGRATIONS.iter() {
            let parts: Vec<&str> = statements(&migration.sql).collect();
            assert!(!parts.is_empty(), "{}", migration.version);
            for part in parts {
                let code: Vec<&str> = part.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
                let code = code.join("\n");
                let verb = code.split_whitespace().next().unwrap_or_default();
                assert!(["CREATE", "ALTER", "INSERT", "UPDATE", "DELETE"].contains(&verb), "{part}");
                assert!(!code.contains(';'), "{part}");
            }
        }
        assert_eq!(statements("-- a;\n").count(), 0);
    }
}
