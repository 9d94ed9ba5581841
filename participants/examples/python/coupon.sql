-- What the coupons keep, beside the fences of migrations/participant/V1__fence.sql.
CREATE TABLE coupon (
    name text PRIMARY KEY,
    remaining integer NOT NULL CHECK (remaining >= 0)
);
