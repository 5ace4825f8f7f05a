"""Result rows, and every table, picture and page made of them."""
