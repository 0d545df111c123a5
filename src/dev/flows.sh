# First, once in each terminal.
api=http://127.0.0.1:8080/api/v1
post() { to=$1; shift; curl -sS "$api$to" -H "authorization: Bearer $token" -H 'content-type: application/json' -X POST "$@"; }
get() { curl -sS "$api$1" -H "authorization: Bearer $token"; }
of() { answer=$(cat); found=$(printf '%s' "$answer" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"); if [ -n "$found" ]; then echo "$found"; else echo "no $1 in: $answer" >&2; fi; }
log_in() { token=; token=$(post /auth/login -d "{\"phone\":\"$1\",\"password\":\"$2\"}" | of access_token); }
wait_for() { tries=0; while answer=$(get "$1"); do case $answer in *"$2"* | *'"request_id"'*) break ;; esac; tries=$((tries + 1)); [ $tries -lt 180 ] || break; sleep 1; done; echo "$answer"; }

# A seckill: log in, submit, poll until it is won: code 100, with the number of the order.
log_in 13800000001 onrush-demo
task=$(post /seckill/activities/00000000000000000000000000000001/submissions | of id)
[ -z "$task" ] || { get "/tasks/$task?wait=20"; echo; }

# An order: a new person buys a course, pays in the sandbox, and has it.
phone=139$(date +%s | sed 's/^..//')
token=; token=$(post /auth/register -d "{\"phone\":\"$phone\",\"password\":\"a long password\"}" | of access_token)
order=$(post /orders -H "idempotency-key: $phone" -d '{"course_ids":["00000000000000000000000000000002"]}' | of order_no)
page=$(post "/orders/$order/pay" -d '{"gateway":"sandbox"}' | of pay_url)
if [ -n "$page" ]; then
  echo "the page to pay on: $page"
  curl -sS -o /dev/null -d action=pay "$page"
  wait_for /me/courses 00000000000000000000000000000002
fi

# A time-out: an order with a coupon and points that nobody pays; both come back.
log_in 13800000001 onrush-demo
coupon=$(get /me/coupons | of id)
order=$(post /orders -H "idempotency-key: $(date +%s)" -d "{\"course_ids\":[\"00000000000000000000000000000003\"],\"user_coupon_id\":\"$coupon\",\"points\":1000}" | of order_no)
if [ -z "$order" ]; then echo 'no order was made: is the coupon or are the points with another one that is not over yet?'; else
  get /me/coupons; echo; get '/me/points?limit=1'; echo
  wait_for "/orders/$order" '"timed_out"'
  wait_for /me/coupons '"free"'
  get '/me/points?limit=2'; echo
fi
