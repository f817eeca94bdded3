use mdl_driver::front::Front;
use mdl_driver::pipeline::*;
use mdl_check::entry::EntryOptions;
fn main(){
  let a: Vec<String> = std::env::args().collect();
  let text = mdl_driver::embedded::model("llama").unwrap();
  let mut f = Front::load("models/llama.mdl", text, &|_| None);
  let c = f.preset(&a[1]).unwrap();
  let g = f.build(&c, &a[2], &EntryOptions{sizes: vec![("B".into(),2),("T".into(),128)], documents: true}).unwrap();
  let o = mdl_passes::optimise::Optimizer{beta1:0.9,beta2:0.95,eps:1e-8,weight_decay:0.1,matrices_only:false};
  let p = if a[2]=="loss" {Purpose::Training(o)} else {Purpose::Forward};
  let t = run(g, &mut f, &p).unwrap();
  let s = state_layout(t.last(), &p);
  let e = finish(t.last(), &s, 2).unwrap();
  for b in &e.buffers { println!("{:30} {:?} {} {} {}..{}", b.name, b.space, b.offset, b.bytes, b.first, b.last); }
  for s in &e.steps { println!("{:?}", s); }
  println!("launches {} work {:?} state {} work {}", e.launches(), e.work(), e.state_bytes, e.work_bytes);
}
