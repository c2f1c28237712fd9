@0xbf5147cbbecf40c1;
# What `tests.bench.capnproto` measures: the same values as `tests.bench.calls.SMALL`.

struct Values {
  who @0 :Text;
  whom @1 :Text;
  amount @2 :Int64;
  memo @3 :Text;
  currency @4 :Text;
  paid @5 :Bool;
  key @6 :Data;
}

interface Echo {
  echo @0 (values :Values) -> (values :Values);
  note @1 (values :Values) -> ();
  counted @2 () -> (count :Int64);
}
