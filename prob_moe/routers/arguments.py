from prob_moe.routers.base import Router
checked_arguments = Router.prepare
