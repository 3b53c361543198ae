"""reproduce --set seed=7 / name=x: taken; all seeds (or all variants) become one and the report counts them as independent runs. steps=-1 is planned as well."""
import sys, tempfile
from crlsr.studies.studies import load_study, plan_jobs
study = load_study("smoke"); bad = 0
for change in ({"seed": 7}, {"name": "same"}, {"run_dir": "/elsewhere"}, {"steps": -1}, {"test_data": []}):
    try: planned = plan_jobs(study.replace(seeds=(0, 1, 2), by_profile={"smoke": change}), tempfile.mkdtemp())
    except ValueError as error: print(change, "refused:", error); continue
    key = next(iter(change)); print(change, "planned:", [(job.name, job.parameters[key]) for job in planned][:3]); bad += 1
sys.exit(bad > 0)
