use mdl_driver::front::Front;
use mdl_check::entry::EntryOptions;
fn main(){
  let a: Vec<String> = std::env::args().collect();
  let text = mdl_driver::embedded::model("llama").unwrap();
  let mut f = Front::load("models/llama.mdl", text, &|_| None);
  let c = f.preset(&a[1]).unwrap();
  let g = f.build(&c, &a[2], &EntryOptions{sizes: vec![("B".into(),2),("T".into(),8)], documents: true}).unwrap();
  let g = mdl_passes::hoist::hoist(&mdl_passes::differentiate::differentiate(&g).unwrap()).unwrap();
  let o = mdl_passes::optimise::Optimizer{beta1:0.9,beta2:0.95,eps:1e-8,weight_decay:0.1,matrices_only:false};
  let g = mdl_passes::optimise::optimise(&g, &f.program, &o, &mut f.sink).unwrap();
  println!("{:?}", mdl_ir::verify::verify(&g));
  let g = mdl_passes::fuse::fuse(&g).unwrap();
  println!("{}", mdl_ir::print::print(&g)); println!("{:?}", mdl_ir::verify::verify(&g));
}
