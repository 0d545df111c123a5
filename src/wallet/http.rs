//! Routes of coupons and points.

use axum::Json as Reply;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    CouponId, CouponKind, CouponState, HolderId, LedgerLine, NewCoupon, Terms, UserCoupon, UserCouponId, over_faults,
};
use crate::access::{Require, may};
use crate::app::App;
use crate::auth::LiveUser;
use crate::error::Result;
use crate::idempotency::{self, Key, StoredAnswer};
use crate::platform::clock::At;
use crate::platform::extract::{Faults, Input, Inputs, Json, Path, Query, Shape};
use crate::platform::money::Money;
use crate::platform::page::{Page, PageQuery};
use crate::platform::spelling::nfc;
use crate::platform::validators::words;

/// A coupon in the caller's wallet.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UserCouponView {
    /// Name it as `user_coupon_id` in an order.
    pub id: UserCouponId,
    /// Which coupon it is.
    pub coupon_id: CouponId,
    /// The coupon's name.
    pub title: String,
    /// How the discount is counted.
    pub kind: CouponKind,
    /// The discount of an `amount` coupon.
    pub amount_fen: Money,
    /// The percentage of a `percent` coupon.
    pub percent_off: i32,
    /// The largest discount of a `percent` coupon.
    pub cap_fen: Money,
    /// The least spend it may be used on.
    pub min_spend_fen: Money,
    /// Usable from this instant.
    pub valid_from: At,
    /// Usable until just before this instant.
    pub valid_until: At,
    /// Whether it can be used.
    pub state: CouponState,
    /// The order that holds it.
    pub order_no: Option<HolderId>,
    /// When it was claimed.
    pub claimed_at: At,
    /// When the order took it.
    pub used_at: Option<At>,
}

impl UserCouponView {
    fn of(coupon: UserCoupon, now: At) -> Self {
        let state = coupon.state(now);
        let terms = coupon.terms;
        Self {
            id: coupon.id,
            coupon_id: coupon.coupon_id,
            title: coupon.title,
            kind: terms.kind,
            amount_fen: terms.amount,
            percent_off: terms.percent_off,
            cap_fen: terms.cap,
            min_spend_fen: terms.min_spend,
            valid_from: terms.valid_from,
            valid_until: terms.valid_until,
            state,
            order_no: coupon.order_id,
            claimed_at: coupon.claimed_at,
            used_at: coupon.used_at,
        }
    }
}

/// Puts a coupon into the caller's wallet. Safe to repeat: a repeat answers what the first one put there.
#[utoipa::path(post, path = "/coupons/{id}/claim", operation_id = "claim_coupon", tag = "wallet", security(("bearer" = [])),
    params(("id" = CouponId, Path, description = "The coupon")),
    responses(
        (status = 201, body = UserCouponView, description = "Claimed"),
        (status = 200, body = UserCouponView, description = "Claimed before"),
        (status = 409, description = "`coupon_exhausted`, `coupon_unusable`"),
    ))]
pub async fn claim(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Path(coupon)): Input<Path<CouponId>>,
) -> Result<(StatusCode, Reply<UserCouponView>)> {
    let (claimed, first) = super::claim(&app, user.id, coupon).await?;
    let status = if first { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Reply(UserCouponView::of(claimed, app.clock.now()))))
}

/// The caller's coupons, newest first.
#[utoipa::path(get, path = "/me/coupons", operation_id = "list_my_coupons", tag = "wallet", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = Page<UserCouponView>, description = "A page")))]
pub async fn coupons(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<Reply<Page<UserCouponView>>> {
    let list = super::coupons(&app, user.id, &page).await?;
    let now = app.clock.now();
    let items = list.items.into_iter().map(|coupon| UserCouponView::of(coupon, now)).collect();
    Ok(Reply(Page { items, next_cursor: list.next_cursor }))
}

/// One change of the caller's points.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct LedgerLineView {
    /// Points that came (positive) or went.
    pub delta: i64,
    /// Why: `order_spend`, `order_return`, `order_earned`, `order_earned_back`, `order_spend_back`, `order_refunded`,
    /// `owed_paid` or `gift`, with `:<n>` behind it for the n-th time an order took or gave back its points.
    #[schema(pattern = "^(order_(spend|return|earned|earned_back|spend_back|refunded)|owed_paid|gift)(:[0-9]+)?$")]
    pub reason: String,
    /// What for: the order's number, the number of a refund of it for `order_earned_back` and `order_spend_back`, the
    /// credit that paid for `owed_paid`, or the giver's reference.
    pub reference: HolderId,
    /// When.
    pub created_at: At,
}

/// The caller's points.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct PointsView {
    /// What can be spent.
    pub balance: i64,
    /// Points that refunds were to take back and that had been spent: the next that come pay them (`owed_paid`).
    pub owed: i64,
    /// The changes it is the sum of, newest first.
    pub items: Vec<LedgerLineView>,
    /// Send it as `cursor` for the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// The caller's points and where they came from.
#[utoipa::path(get, path = "/me/points", operation_id = "get_my_points", tag = "wallet", security(("bearer" = [])), params(PageQuery),
    responses((status = 200, body = PointsView, description = "The balance and a page of the ledger")))]
pub async fn points(
    State(app): State<App>,
    LiveUser(user): LiveUser,
    Input(Query(page)): Input<Query<PageQuery>>,
) -> Result<Reply<PointsView>> {
    let (account, lines) = super::points(&app, user.id, &page).await?;
    let view = |line: LedgerLine| LedgerLineView {
        delta: line.delta,
        reason: line.reason,
        reference: line.ref_id,
        created_at: line.created_at,
    };
    let items = lines.items.into_iter().map(view).collect();
    let (balance, owed) = (account.balance, account.owed);
    Ok(Reply(PointsView { balance, owed, items, next_cursor: lines.next_cursor }))
}

/// A coupon to create: `amount_fen`, or `percent_off` with `cap_fen`.
#[derive(Debug, Clone, Serialize, Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CouponRequest {
    /// Its name.
    #[garde(custom(words(1, 100)))]
    #[serde(deserialize_with = "nfc")]
    #[schema(min_length = 1, max_length = 100, pattern = r"\S")]
    pub title: String,
    /// How the discount is counted.
    #[garde(skip)]
    pub kind: CouponKind,
    /// The discount; of an `amount` coupon only.
    #[garde(range(min = 1, max = 100_000_000_000))]
    #[schema(minimum = 1, maximum = 100_000_000_000i64)]
    pub amount_fen: Option<i64>,
    /// The percentage; of a `percent` coupon only.
    #[garde(range(min = 1, max = 100))]
    #[schema(minimum = 1, maximum = 100)]
    pub percent_off: Option<i32>,
    /// The largest discount; of a `percent` coupon only.
    #[garde(range(min = 1, max = 100_000_000_000))]
    #[schema(minimum = 1, maximum = 100_000_000_000i64)]
    pub cap_fen: Option<i64>,
    /// The least spend it may be used on; 0 by default.
    #[garde(range(min = 0, max = 100_000_000_000))]
    #[schema(minimum = 0, maximum = 100_000_000_000i64)]
    pub min_spend_fen: Option<i64>,
    /// How many may be claimed.
    #[garde(range(min = 1, max = 1_000_000_000))]
    #[schema(minimum = 1, maximum = 1_000_000_000)]
    pub quantity: i64,
    /// Usable from this instant (RFC 3339).
    #[garde(custom(can_be_kept))]
    #[schema(value_type = String, format = "date-time", max_length = 40)]
    pub valid_from: At,
    /// Usable until just before this instant, which is to come (RFC 3339).
    #[garde(custom(can_be_kept))]
    #[schema(value_type = String, format = "date-time", max_length = 40)]
    pub valid_until: At,
}

impl Shape<App> for CouponRequest {
    fn together(&self, app: &App, faults: &mut Faults) {
        let percent = self.kind == CouponKind::Percent;
        let fields = [
            ("amount_fen", self.amount_fen.is_some(), !percent),
            ("percent_off", self.percent_off.is_some(), percent),
            ("cap_fen", self.cap_fen.is_some(), percent),
        ];
        let kind_is_known = faults.spare(&["kind"]);
        for (field, given, wanted) in fields {
            if kind_is_known && given != wanted {
                faults.add(field, if wanted { "is required for this kind" } else { "does not go with this kind" });
            }
        }
        if self.valid_until <= self.valid_from && faults.spare(&["valid_from", "valid_until"]) {
            faults.add("valid_until", "must be after valid_from");
        }
        // Of a request that is well otherwise this is asked when it is no repeat: a repeat is answered as the first was.
        if !faults.is_empty() {
            faults.extend(over_faults(self.valid_until, app.clock.now()));
        }
    }
}

impl CouponRequest {
    fn coupon(&self) -> NewCoupon {
        let terms = Terms {
            kind: self.kind,
            amount: Money::fen(self.amount_fen.unwrap_or(0)),
            percent_off: self.percent_off.unwrap_or(0),
            cap: Money::fen(self.cap_fen.unwrap_or(0)),
            min_spend: Money::fen(self.min_spend_fen.unwrap_or(0)),
            valid_from: self.valid_from,
            valid_until: self.valid_until,
        };
        NewCoupon { title: self.title.clone(), terms, quantity: self.quantity }
    }
}

/// The last instant that a coupon's time may reach: 9998-12-31, well inside what MySQL holds.
const LAST_INSTANT_MS: i64 = 253_370_764_800_000;

fn can_be_kept(at: &At, (): &()) -> garde::Result {
    let kept = (0..LAST_INSTANT_MS).contains(&at.ms());
    if kept { Ok(()) } else { Err(garde::Error::new("must be in the years 1970 to 9998")) }
}

/// A coupon that was created.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct CouponCreated {
    /// Its id, to claim it by.
    pub id: CouponId,
}

/// Creates a coupon.
#[utoipa::path(post, path = "/admin/coupons", operation_id = "create_coupon", extensions(("x-permission" = json!("coupons.write"))), tag = "admin", security(("bearer" = [])),
    params(("Idempotency-Key" = String, Header, min_length = 1, max_length = 128, pattern = "^[!-~]{1,128}$",
        description = "A new one for each new coupon; the same one makes a repeat safe")),
    request_body = CouponRequest,
    responses(
        (status = 201, body = CouponCreated, description = "Created; a repeat answers the same bytes"),
        (status = 400, description = "`malformed_json`, `idempotency_key_missing`, `idempotency_key_invalid`"),
        (status = 422, description = "`validation_failed`, `idempotency_key_reused`"),
    ))]
pub async fn create_coupon(
    State(app): State<App>,
    Require(admin, _): Require<may::CouponsWrite>,
    Inputs(key, Json(request)): Inputs<Key, Json<CouponRequest>>,
) -> Result<StoredAnswer> {
    let fingerprint = idempotency::fingerprint("POST /admin/coupons", &request)?;
    let made = |id| StoredAnswer::json(StatusCode::CREATED, &CouponCreated { id });
    super::create_coupon_once(&app, admin.id, (&key, fingerprint), &request.coupon(), made).await
}
