//! Who may do what: permissions, and the roles that are sets of them.
//!
//! A route of administrators names the permission that it needs: `Require(admin, _): Require<may::OrdersRefund>`. The
//! account is looked up in MySQL with each such request, so a role that was taken away is gone at once.

mod admin;
pub mod http;

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

pub use admin::{StaffAccount, create, disable, enable, list, set_role};

use crate::app::App;
use crate::auth::{self, CurrentUser, Role, UserId};
use crate::error::{Error, Kind, Result, refuse};

/// What a route may need: a permission as a type.
pub trait Needed: Send + Sync + 'static {
    /// The permission.
    const PERMISSION: Permission;
}

macro_rules! permissions {
    ($($(#[doc = $text:literal])+ $name:ident = $word:literal),+ $(,)?) => {
        /// What somebody may be allowed to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Permission { $($(#[doc = $text])+ $name),+ }

        impl Permission {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// As refusals, the API's description and the documents have it.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),+ }
            }
        }

        /// Each permission as a type, for [`Require`].
        pub mod may {
            $($(#[doc = $text])+ #[derive(Debug)] pub struct $name;
            impl super::Needed for $name {
                const PERMISSION: super::Permission = super::Permission::$name;
            })+
        }
    };
}

permissions! {
    /// See everybody's orders, with their payments, refunds and gateways' messages.
    OrdersRead = "orders.read",
    /// Give money of an order back, and send a refund again.
    OrdersRefund = "orders.refund",
    /// Decide about a payment that does not fit: judge a message again, give a payment up.
    PaymentsResolve = "payments.resolve",
    /// See the gateways' statements and where they differ from our books.
    StatementsRead = "statements.read",
    /// Have a statement fetched, and resolve a difference.
    StatementsWrite = "statements.write",
    /// Create courses.
    CatalogueWrite = "catalogue.write",
    /// Create coupons.
    CouponsWrite = "coupons.write",
    /// Create, change and close activities.
    ActivitiesWrite = "activities.write",
    /// See queues, workers, tasks, dead letters and schedules.
    QueuesRead = "queues.read",
    /// Pause, resume and purge queues, set what runs at once, run and take back tasks, run and delete dead letters.
    QueuesOperate = "queues.operate",
    /// Create, change and delete schedules.
    SchedulesWrite = "schedules.write",
    /// End the logins of an account.
    UsersWrite = "users.write",
    /// See the daily reports.
    ReportsRead = "reports.read",
    /// See who did what.
    AuditRead = "audit.read",
}

use Permission::{
    ActivitiesWrite, AuditRead, CatalogueWrite, CouponsWrite, OrdersRead, OrdersRefund, PaymentsResolve, QueuesOperate,
    QueuesRead, ReportsRead, SchedulesWrite, StatementsRead, StatementsWrite, UsersWrite,
};

/// What a role may do beside what every account may.
pub const fn permissions(role: Role) -> &'static [Permission] {
    match role {
        Role::User => &[],
        Role::Auditor => &[OrdersRead, StatementsRead, QueuesRead, ReportsRead, AuditRead],
        // A buyer asks why a submission was refused: it is a task.
        Role::Support => &[OrdersRead, OrdersRefund, QueuesRead, UsersWrite],
        Role::Finance => &[OrdersRead, OrdersRefund, PaymentsResolve, StatementsRead, StatementsWrite, ReportsRead],
        Role::Operator => {
            &[CatalogueWrite, CouponsWrite, ActivitiesWrite, QueuesRead, QueuesOperate, SchedulesWrite, ReportsRead]
        }
        Role::Admin => Permission::ALL,
    }
}

/// Whether a role has a permission.
pub fn may(role: Role, permission: Permission) -> bool {
    permissions(role).contains(&permission)
}

/// Whether somebody has a permission, by MySQL's word at this moment. It is asked about those alone whose token says so.
pub async fn holds(app: &App, user: &CurrentUser, permission: Permission) -> Result<bool> {
    Ok(may(user.role, permission) && may(auth::current_role(app, user).await?, permission))
}

/// Refuses whoever is no admin to do this to an account that has a role: who helps buyers must not keep the others out.
async fn require_over(app: &App, by: &CurrentUser, target: UserId) -> Result<()> {
    let found = auth::users(&mut *app.db.acquire().await?, &[target]).await?;
    if by.role == Role::Admin || found.iter().all(|user| user.role == Role::User) {
        return Ok(());
    }
    Err(refuse(Kind::Forbidden, "the account has a role: only an admin may do this to it").into())
}

/// Somebody who has the permission `P`, by MySQL's word at this moment; anybody else is refused with 403.
#[derive(Debug)]
pub struct Require<P>(pub CurrentUser, pub PhantomData<P>);

impl<P: Needed> FromRequestParts<App> for Require<P> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let user = auth::with_current_role(parts, app).await?;
        if may(user.role, P::PERMISSION) {
            return Ok(Self(user, PhantomData));
        }
        auth::was_forbidden(parts, app, user.id).await;
        let (needed, role) = (P::PERMISSION.as_str(), user.role.as_str());
        let hint = if user.role == Role::User { "; if it is new, log in anew" } else { "" };
        Err(refuse(
            Kind::Forbidden,
            format!("this needs the permission {needed}, which the role {role} does not have{hint}"),
        )
        .into())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Who reads the table decides by it whom to give which role.
    #[test]
    fn the_documents_table_of_roles_is_the_codes() {
        let page = include_str!("../docs/OPERATIONS.md");
        let table = page.split_once("| permission | lets |").expect("the table of roles").1;
        let mut rows = table.lines();
        let roles: Vec<Role> =
            rows.next().unwrap_or_default().split('|').filter_map(|cell| cell.trim().parse().ok()).collect();
        assert_eq!(roles, Role::ALL[1..]);
        let mut told = 0;
        for row in rows.skip(1).take_while(|row| row.starts_with('|')) {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let named = |permission: &&Permission| cells[0] == format!("`{}`", permission.as_str());
            let permission = Permission::ALL.iter().find(named).expect(cells[0]);
            for (role, cell) in roles.iter().zip(&cells[2..]) {
                assert_eq!(*cell == "✓", may(*role, *permission), "{role:?} {permission:?}");
            }
            told += 1;
        }
        assert_eq!(told, Permission::ALL.len());
    }

    #[test]
    fn every_permission_has_a_word_of_its_own_and_a_role_beside_admin() {
        let words: BTreeSet<&str> = Permission::ALL.iter().map(|permission| permission.as_str()).collect();
        assert_eq!(words.len(), Permission::ALL.len());
        for permission in Permission::ALL {
            let others = Role::ALL.iter().filter(|role| **role != Role::Admin);
            assert!(others.clone().any(|role| may(*role, *permission)), "{permission:?}");
            assert!(permission.as_str().split_once('.').is_some_and(|(what, how)| !what.is_empty() && !how.is_empty()));
        }
        assert!(permissions(Role::User).is_empty());
        // Who only looks changes nothing.
        assert!(permissions(Role::Auditor).iter().all(|permission| permission.as_str().ends_with(".read")));
        let read = Permission::ALL.iter().filter(|permission| permission.as_str().ends_with(".read"));
        assert!(read.clone().all(|permission| may(Role::Auditor, *permission)));
    }
}
