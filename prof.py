import time, torch, cProfile, pstats
torch.set_num_threads(1)
from crlsr.battery import *
from crlsr.battery import Case
from crlsr.data import embedded_images
from crlsr.degradation import Degradation
from crlsr.model import CRLSR, ModelConfig
from crlsr.contrast import sample_positions
t=time.perf_counter()
s=draw_samples(embedded_images(), Degradation.parse("aniso+noise:0..25",scale=4),patches=12,patch_size=16)
print("samples",time.perf_counter()-t)
c=ModelConfig(num_feat=16,num_block=3)
case=Case(CRLSR(c).eval(),s,sample_positions(16,16,64),{"l1":CRLSR(c).eval()},CRLSR(c).eval())
pr=cProfile.Profile()
for f in (degradation_tables,invariance_tables,detail_table,pair_table,swap_table,doubt_table):
    t=time.perf_counter(); pr.enable(); f(case); pr.disable(); print(f.__name__,round(time.perf_counter()-t,2))
pstats.Stats(pr).sort_stats("tottime").print_stats(12)
