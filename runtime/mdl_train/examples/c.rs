use mdl_train::compare::compare;
fn main(){ let a: Vec<String> = std::env::args().collect();
 let d = std::path::Path::new(&a[1]);
 match compare(d, &d.join("answers.safetensors"), a[2]=="i") { Ok(c) => { for t in &c.tensors { println!("{:60} {:.3e} {}", t.name, t.error, if t.error<=t.tolerance {""} else {"FAIL"}); } println!("{} worst {:?}", c.passed, c.worst()); } Err(e) => println!("{e}") } }
