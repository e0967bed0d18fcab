-- The shop's own tables. No unique keys on payments: that each order is there once is the engine's
-- doing, and the demo checks it.
create schema if not exists shop;
create table if not exists shop.stock (sku text primary key, on_hand int not null check (on_hand >= 0));
create table if not exists shop.holds (id text primary key, sku text not null, count int not null);
create table if not exists shop.payments (order_id text not null, payment text not null, cents int not null);
