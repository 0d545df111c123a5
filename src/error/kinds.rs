//! Every refusal the API can give, in one table.

use axum::http::StatusCode;

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $kind:ident = $status:literal $name:literal $title:literal $(=> $code:literal)?;)+) => {
        /// Why a request was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }
        impl Kind {
            /// Every kind, for the documentation and its test.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];
            /// (HTTP status, stable name, title) of the kind.
            pub(super) const fn row(self) -> (u16, &'static str, &'static str) {
                match self { $(Self::$kind => ($status, $name, $title),)+ }
            }
            /// What a page that waits for something does on hearing of it: 101 gives up, 102 goes on waiting.
            pub const fn code(self) -> u16 {
                match self { $(Self::$kind => or_give_up(&[$($code)?]),)+ }
            }
            /// What the kind means, for a person: the words beside it in the table.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

/// What a page does, where a row does not say it.
const fn or_give_up(code: &[u16]) -> u16 {
    if let [code] = code { *code } else { 101 }
}

// A macro, so that a refusal is one line and its row cannot be forgotten. `=> 102`: a page that waits for something goes
// on doing so; it gives up at the others. What a buyer reads of a kind is in `texts/refusals.rs`.
refusals! {
    /// The body is not JSON.
    MalformedJson = 400 "malformed_json" "The body is not valid JSON";
    /// The request names no `Host`, several, or one that is not valid.
    HostInvalid = 400 "host_invalid" "The Host header is not valid";
    /// The body did not arrive whole.
    BodyIncomplete = 400 "body_incomplete" "The body did not arrive whole";
    /// A mutating request without the header that makes it safe to repeat.
    IdempotencyKeyMissing = 400 "idempotency_key_missing" "The Idempotency-Key header is required";
    /// The header is not 1..128 visible ASCII characters.
    IdempotencyKeyInvalid = 400 "idempotency_key_invalid" "The Idempotency-Key header is not valid";
    /// A callback whose signature does not hold.
    CallbackInvalid = 400 "callback_invalid" "The callback could not be verified";
    /// No access token.
    Unauthenticated = 401 "unauthenticated" "An access token is required";
    /// Not a token of ours: altered, another algorithm, not a token at all.
    TokenInvalid = 401 "token_invalid" "The access token is not valid";
    /// A token past its time.
    TokenExpired = 401 "token_expired" "The access token has expired";
    /// The login that the token was made in is over: it was logged out, or its refresh token was used twice.
    LoginOver = 401 "login_over" "The login is over";
    /// Wrong phone or password, never which.
    WrongCredentials = 401 "wrong_credentials" "Phone or password is wrong";
    /// The refresh token is unknown, expired or revoked.
    RefreshInvalid = 401 "refresh_token_invalid" "The refresh token is not valid";
    /// The refresh token was used before: the whole login is revoked.
    RefreshReused = 401 "refresh_token_reused" "The refresh token was used before";
    /// An administrator has disabled the account.
    AccountDisabled = 403 "account_disabled" "The account is disabled";
    /// Known, but not allowed.
    Forbidden = 403 "forbidden" "This needs another role";
    /// Nothing here, or nothing of yours.
    NotFound = 404 "not_found" "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = 405 "method_not_allowed" "Method not allowed";
    /// The client took too long to send its request.
    RequestTimeout = 408 "request_timeout" "The request took too long to arrive";
    /// The phone number has an account.
    PhoneTaken = 409 "phone_taken" "The phone number is registered";
    /// The id is a course's already, and the course is another one.
    CourseExists = 409 "course_exists" "The id belongs to another course";
    /// The id is an activity's already, and the activity is another one.
    ActivityExists = 409 "activity_exists" "The id belongs to another activity";
    /// A course is not on sale.
    CourseUnavailable = 409 "course_unavailable" "A course is not on sale";
    /// The user has the course already.
    AlreadyOwned = 409 "already_owned" "The course is already yours";
    /// The coupon is used, expired, not yet valid, or not enough is spent.
    CouponUnusable = 409 "coupon_unusable" "The coupon cannot be used";
    /// No more of the coupon can be claimed.
    CouponExhausted = 409 "coupon_exhausted" "No coupon is left";
    /// More points than the user has, or than the order takes.
    PointsUnusable = 409 "points_unusable" "The points cannot be used";
    /// The order costs something else than the buyer was shown; `expected_payable_fen` and `payable_fen` say what.
    PriceChanged = 409 "price_changed" "The price has changed";
    /// More is to be paid than the gateway takes, or than any does; `max_fen` says what is taken at most, `gateways` by whom.
    AmountTooLarge = 409 "amount_too_large" "The amount is more than can be paid";
    /// The user has as many orders waiting for their payment as are allowed, or as many of a course; `max` says how many.
    TooManyUnpaid = 409 "too_many_unpaid" "Too many orders wait for their payment";
    /// The order is not in a state that allows this.
    OrderState = 409 "order_state" "The order's state does not allow this";
    /// The order's time to pay is over.
    OrderExpired = 409 "order_expired" "The order's time to pay is over";
    /// The order was closed by its user.
    OrderCancelled = 409 "order_cancelled" "The order was cancelled";
    /// The order's money went back to its user, or is on its way.
    OrderRefunded = 409 "order_refunded" "The order was refunded";
    /// What is to be refunded was refunded before.
    AlreadyRefunded = 409 "already_refunded" "This has been refunded before";
    /// More would go back than is left of what was paid.
    RefundTooMuch = 409 "refund_too_much" "More than is left would go back";
    /// A step that the refund's state does not allow.
    RefundState = 409 "refund_state" "The refund's state does not allow this";
    /// The message cannot be judged again: the version that kept it did not keep what it said.
    NotificationState = 409 "notification_state" "The message cannot be run again";
    /// A step that the payment's state, or its gateway's, does not allow.
    PaymentState = 409 "payment_state" "The payment's state does not allow this";
    /// What is asked for needs a payment gateway that is switched off.
    GatewayOff = 409 "gateway_off" "The payment gateway is switched off";
    /// Gateways have no bill of that day yet; `ready_at` says when.
    BillNotReady = 409 "bill_not_ready" "The bill is not ready";
    /// The difference has come to fit by itself, or may still: `waits_until` then says until when at the latest.
    DifferenceState = 409 "difference_state" "The difference's state does not allow this";
    /// The sale has not begun; `Retry-After` and `starts_at` say when.
    NotStarted = 409 "not_started" "The sale has not started";
    /// No unit is left (one may come back).
    SoldOut = 409 "sold_out" "Sold out";
    /// The user has had as many tries as the activity allows.
    LimitReached = 409 "limit_reached" "The limit per user is reached";
    /// A change that the activity's state does not allow.
    ActivityState = 409 "activity_state" "The activity's state does not allow this";
    /// The name is another schedule's.
    ScheduleExists = 409 "schedule_exists" "The name belongs to another schedule";
    /// A step that the task's state does not allow.
    TaskState = 409 "task_state" "The task's state does not allow this";
    /// The sale is over.
    Ended = 410 "ended" "The sale has ended";
    /// The body is longer than the limit.
    BodyTooLarge = 413 "payload_too_large" "The body is too large";
    /// The body is not declared as JSON in UTF-8.
    NotJson = 415 "unsupported_media_type" "The body must be application/json in UTF-8";
    /// A field, a parameter or a header is wrong; `errors` names every one.
    Invalid = 422 "validation_failed" "The request is not valid";
    /// The key came before with another body.
    IdempotencyKeyReused = 422 "idempotency_key_reused" "The Idempotency-Key was used for another request";
    /// A callback that verified but does not fit our books; kept for a person.
    CallbackFlagged = 422 "callback_flagged" "The callback does not match the payment";
    /// Too many tries; `Retry-After` says when the next one counts.
    TooManyAttempts = 429 "too_many_attempts" "Too many attempts" => 102;
    /// A fault of ours; the log has the cause under the request id.
    Internal = 500 "internal" "Something went wrong on our side";
    /// A payment gateway does not answer.
    GatewayUnavailable = 503 "gateway_unavailable" "The payment gateway does not answer";
    /// The database or Redis cannot serve now.
    Unavailable = 503 "unavailable" "The service cannot answer now" => 102;
    /// More requests than the process takes on.
    Overloaded = 503 "overloaded" "The service is busy" => 102;
    /// The request took longer than the limit; its effect, if any, stands.
    Timeout = 503 "timeout" "The request took too long" => 102;
}

impl Kind {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
    /// The stable name, `error` in the body.
    pub const fn name(self) -> &'static str {
        self.row().1
    }
    /// The title.
    pub const fn title(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_a_status_of_an_error() {
        let mut names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(kind.status().is_client_error() || kind.status().is_server_error(), "{}", kind.name());
        }
    }
}
