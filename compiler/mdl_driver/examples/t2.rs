use mdl_driver::front::Front;
use mdl_check::entry::EntryOptions;
fn main(){
  let a: Vec<String> = std::env::args().collect();
  let text = mdl_driver::embedded::model("llama").unwrap();
  let mut f = Front::load("models/llama.mdl", text, &|_| None);
  let c = f.preset(&a[1]).unwrap();
  let g = f.build(&c, &a[2], &EntryOptions{sizes: vec![("B".into(),2),("T".into(),8)], documents: true}).unwrap();
  let g = mdl_passes::differentiate::differentiate(&g).unwrap();
  println!("{}", mdl_ir::print::print(&g)); println!("{:?}", mdl_ir::verify::verify(&g));
}
