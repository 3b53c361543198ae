"""--set of reproduce is read by other rules than --set of train, and its values are not checked before kernels start."""
from _common import *
faults = []
for text in ("channels_last=True", "threads=None", "learning_rate=.001", "steps=abc", "steps=1e3", "preset=bogus"):
    dry = crlsr("reproduce", "smoke", "--dry-run", "--out", "o", "--set", text)[0]
    from crlsr.training import profile
    key, _, value = text.partition("=")
    try: profile("smoke", [text]); fits = True  # as --set of train reads it
    except ValueError as e: fits, why = False, e
    if key == "preset":
        from crlsr.degradation import Degradation
        try: Degradation.parse(value)
        except ValueError as e: fits, why = False, e
    if dry == 0 and not fits: faults.append(f"--set {text}: planned as if it were fine; each kernel would stop with '{str(why)[:70]}'")
code, out, err = crlsr("reproduce", "recipe", "--profile", "smoke", "--dry-run", "--out", "o", "--set", "steps=abc")
if "TypeError" in err: faults.append("losses --set steps=abc: " + err.strip())
code, out, err = crlsr("reproduce", "smoke", "--dry-run", "--out", "o", "--set", "test_data=mydata")
if "source 'm'" in err: faults.append("--set test_data=mydata: " + err.strip())
end(faults)
